# The image of all services: darkpearl api, listener, webhooks, db migrate. It holds no secret and
# needs no file of its own: read-only, with a tmpfs at /tmp, as docker-compose.yml runs it.

FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY sql sql
COPY darkpearl darkpearl
RUN python -m venv /opt/darkpearl \
    && /opt/darkpearl/bin/pip install --no-cache-dir --disable-pip-version-check '.[stripe,otel]'

FROM python:3.12-slim
COPY --from=build /opt/darkpearl /opt/darkpearl
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin darkpearl
ENV PATH=/opt/darkpearl/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /
# By number, so that an orchestrator sees that it isn't root.
USER 10001:10001
EXPOSE 8000
# Of an API, or of a listener that has DARKPEARL_METRICS_PORT: any answer but a failure will do. What
# serves no port (webhooks, db migrate) goes without: --no-healthcheck.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('DARKPEARL_METRICS_PORT') or os.environ.get('DARKPEARL_PORT') or 8000), timeout=4); c.request('GET', '/health/live'); raise SystemExit(c.getresponse().status >= 500)"]
CMD ["darkpearl", "--help"]
