# SPDX-License-Identifier: Apache-2.0
"""Message queues: a cell's, and the buses of the service itself, every use of which ends in time.

The way of a message: ``cell_queue`` or ``bus`` says whose queue it is, ``message_queue`` takes it there and bounds
that, ``direct`` writes it, ``brokers`` and ``handshake`` know whether anybody is there, ``causes`` says why not.
"""
