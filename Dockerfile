# syntax=docker/dockerfile:1
# One gateway, for many replicas or one: `docker build -t nemo-agents .` and see compose.yaml.

FROM python:3.11-slim AS build
WORKDIR /src
COPY .ci/requirements-dev.txt .ci/
COPY pyproject.toml README.md LICENSE ./
COPY nemo_agents nemo_agents
# The lock's versions, of those packages alone that the extras below need.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/nemo-agents \
    && sed -E '/^ +--hash|^ *#/d; s/ *\\$//' .ci/requirements-dev.txt > /tmp/versions.txt \
    && /opt/nemo-agents/bin/pip install --no-compile --constraint /tmp/versions.txt ".[postgres,redis]"

FROM python:3.11-slim
ENV PATH=/opt/nemo-agents/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NEMO_HOME=/var/lib/nemo-agents
RUN useradd --system --uid 10001 --home-dir /var/lib/nemo-agents --shell /usr/sbin/nologin nemo \
    && install -d -o nemo -g nemo -m 0700 /var/lib/nemo-agents
COPY --from=build /opt/nemo-agents /opt/nemo-agents
USER nemo
VOLUME /var/lib/nemo-agents
EXPOSE 4141
# SIGTERM: no new requests, ten seconds for those in flight, and what is queued is written.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 CMD \
    ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:4141/health/ready', timeout=2)"]
ENTRYPOINT ["nemo-agents"]
CMD ["gateway"]
