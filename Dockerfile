# The server and the page in one image; compose.yaml starts both.
#   docker build -t vilg .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/keys:/run/keys:ro" vilg
# .ci/bare runs the steps below in a bare Debian, whether or not there is a Docker. Models of your own: mount their
# folder and name it behind the command.
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends python3 make ca-certificates
WORKDIR /vilg
COPY . .
RUN make server
RUN .venv/bin/python tools/serve.py --help
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1
USER nobody
EXPOSE 8000 7860
HEALTHCHECK --start-period=60s CMD [".venv/bin/python", "-c", \
  "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=5)"]
ENTRYPOINT [".venv/bin/python"]
CMD ["tools/serve.py", "ernie_vilg_tiny", "ernie_vil_tiny", "--host", "0.0.0.0", "--api-key-file", "/run/keys"]
