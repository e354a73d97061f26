# gunicorn --config gunicorn.conf.py shop:app
bind = "127.0.0.1:8080"
worker_class = "aiohttp.GunicornWebWorker"
workers = 2  # one for each core; the broker makes them one Hub
reuse_port = True  # a socket for each worker: the kernel distributes the streams evenly
backlog = 4096  # browsers that reconnect at once wait in it
graceful_timeout = 60  # the streams take 7 s of it, a Hub whose broker is down 50; then SIGKILL


def post_fork(server, worker):
    for listener in worker.sockets:
        listener.listen = lambda _: None  # it listens already; aiohttp would set the backlog to 128
