"""gRPC without generated code. usage: grpc_echo.py server PORT-OR-PATH | grpc_echo.py client HOST:PORT; needs grpcio."""
import sys
import threading
from concurrent import futures

import grpc


def unary(request, context):
    if request == b"fail":
        context.set_trailing_metadata((("why", "requested"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as requested")
    context.set_trailing_metadata((("x-trailer", "there"),))
    return b"unary:" + request


def both(requests, context):
    for request in requests:
        yield b"stream:" + request


def many(request, context):
    for number in range(1000):
        yield b"%d" % number


if sys.argv[1] == "server":
    handlers = grpc.method_handlers_generic_handler("weft.Echo", {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Both": grpc.stream_stream_rpc_method_handler(both),
        "Many": grpc.unary_stream_rpc_method_handler(many),
    })
    server = grpc.server(futures.ThreadPoolExecutor(16), handlers=(handlers,))
    at = sys.argv[2]
    server.add_insecure_port("unix:" + at if at.startswith("/") else "0.0.0.0:" + at)
    server.start()
    print("listening", flush=True)
    server.wait_for_termination()

channel = grpc.insecure_channel(sys.argv[2])
call = channel.unary_unary("/weft.Echo/Unary")
answer, info = call.with_call(b"hello", timeout=15)
assert answer == b"unary:hello", answer
assert ("x-trailer", "there") in info.trailing_metadata(), info.trailing_metadata()
try:
    call(b"fail", timeout=15)
    raise SystemExit("the failing call succeeded")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    assert error.details() == "as requested", error
    assert ("why", "requested") in error.trailing_metadata(), error
assert [int(n) for n in channel.unary_stream("/weft.Echo/Many")(b"", timeout=15)] == list(range(1000))

# Both directions at once: each message is sent after the answer to the previous one.
turn = threading.Semaphore(1)


def messages():
    for number in range(100):
        turn.acquire()
        yield b"%d" % number


received = 0
for message in channel.stream_stream("/weft.Echo/Both")(messages(), timeout=30):
    assert message == b"stream:%d" % received, message
    received += 1
    turn.release()
assert received == 100, received
print("ok")
