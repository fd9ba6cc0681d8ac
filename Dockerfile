FROM python:3.12-slim
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY sql sql
COPY darkpearl darkpearl
RUN pip install --no-cache-dir '.[stripe,otel]' && useradd --system darkpearl
WORKDIR /
USER darkpearl
CMD ["darkpearl", "--help"]
