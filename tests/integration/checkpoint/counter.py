# A process with much to lose: what it counts is in its memory, in files that are open, in a file without a name, in
# /dev/shm, and on its way through a pipe from one thread to another; and it tells whoever connects, by two sockets.
#
# Only modules that are built into the interpreter: the container has no others.
import _socket, _thread, posix, sys, time

pause = float(sys.argv[1])
ballast = bytearray()
for _ in range(int(sys.argv[2])):
    ballast += posix.urandom(1 << 20)
CREATE = posix.O_RDWR | posix.O_CREAT

# Append: each number must be there once, and none be missing.
log = posix.open("/log", posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND)
count = posix.open("/count", CREATE)
shared = posix.open("/dev/shm/count", CREATE)
nameless = posix.open("/nameless", CREATE)
posix.unlink("/nameless")
read_end, write_end = posix.pipe()
state = {"counted": 0, "piped": 0}


def weigh():
    return [sum(ballast[at::4096]) for at in (0, 2000, 4095)]


weight = weigh()


def drain():
    while True:
        for byte in posix.read(read_end, 4096):
            state["piped"] += 1
            assert byte == state["piped"] % 251


def listen(family, address):
    listener = _socket.socket(family, _socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen(8)
    return listener


def serve(listener):
    while True:
        number, _ = listener._accept()
        connection = _socket.socket(fileno=number)
        assert weigh() == weight
        kept = int(posix.pread(nameless, 20, 0))
        text = "%d %d %d %d\n" % (state["counted"], state["piped"], kept, int(posix.pread(shared, 20, 0)))
        connection.send(text.encode())
        # The peer closes first, so that no connection of ours lingers.
        connection.recv(1)
        connection.close()


posix.pwrite(nameless, b"%020d" % 0, 0)
posix.pwrite(shared, b"%020d" % 0, 0)
_thread.start_new_thread(drain, ())
_thread.start_new_thread(serve, (listen(_socket.AF_UNIX, "/socket"),))
if sys.argv[3] == "tcp":
    _thread.start_new_thread(serve, (listen(_socket.AF_INET, ("127.0.0.1", 7000)),))
while True:
    state["counted"] += 1
    number = state["counted"]
    posix.write(log, b"%d\n" % number)
    posix.pwrite(nameless, b"%020d" % number, 0)
    posix.pwrite(shared, b"%020d" % number, 0)
    posix.pwrite(count, b"%020d" % number, 0)
    posix.write(write_end, bytes([number % 251]))
    if pause > 0:
        time.sleep(pause)
