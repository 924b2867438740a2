# SPDX-License-Identifier: Apache-2.0
def test_show(nova, workers):
    from tests.nova import instances
    i = instances.create("cell1", decoys=["cell2"])
    z = instances.create("cell0", decoys=["cell2"])
    for a in (nova.plain, nova.filtered):
        assert a.request("GET", f"/v2.1/servers/{i.uuid}").json["server"]["name"] == "in-cell1"
        assert a.request("POST", f"/v2.1/servers/{i.uuid}/action", {"os-getConsoleOutput": {}}).json == {"output": "get_console_output in cell1"}
    r = nova.filtered.request("DELETE", f"/v2.1/servers/{z.uuid}")
    assert r.status_int == 204
