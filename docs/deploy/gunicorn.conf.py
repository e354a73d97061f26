# gunicorn --config gunicorn.conf.py shop:app
bind = "127.0.0.1:8080"
worker_class = "aiohttp.GunicornWebWorker"
workers = 2  # one for each core; the broker makes them one Hub
backlog = 4096  # browsers that reconnect at once wait in it
graceful_timeout = 60  # the streams take 7 s of it, a Hub whose broker is down 50; then SIGKILL
