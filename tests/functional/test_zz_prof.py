from tests.functional.conftest import *
from tests.functional.test_routing_oracle import *
import time
def test_prof(mapped, make_filter, exchange, api):
    f=make_filter(lambda e,s:[])
    cells=f.cells
    from cellmw import RequestContext
    with closing(Workers(CELLS)):
        with cells.target(RequestContext(), cells.get("cell1")) as c:
            for n,fn in (("db",lambda: api.database(c)),("q",lambda: api.queue(c))):
                fn()
                t=time.perf_counter()
                for _ in range(1000): fn()
                print(n,(time.perf_counter()-t),"ms")
            def fresh():
                with cells.target(RequestContext(), cells.get("cell1")) as c: api.queue(c)
            t=time.perf_counter()
            for _ in range(1000): fresh()
            print("fresh",(time.perf_counter()-t),"ms")
            for T in (4,16):
                def many(fn):
                    for _ in range(100): fn()
                for n,fn in (("db",lambda: api.database(c)),("q",fresh)):
                    t=time.perf_counter()
                    with ThreadPoolExecutor(T) as ex:
                        list(ex.map(lambda _: many(fn), range(T)))
                    print(T,n,(time.perf_counter()-t)/(T*100)*1000,"ms each")
