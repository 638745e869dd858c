# A worker that keeps its state, and its embedded NATS server, on one volume.
#
#   docker build -t tipstream .
#   docker run --read-only --tmpfs /tmp --stop-timeout 30 -v tipstream:/var/lib/tipstream \
#       -p 8080:8080 -e HTTP_HOST=0.0.0.0 -e API_TOKENS=recommender:a-secret-of-16-characters-or-more tipstream
#
# HTTP listens on 127.0.0.1 unless told otherwise, which nobody outside the container can reach. HTTP_HOST=0.0.0.0 opens
# it, and needs either API_TOKENS, or HTTP_ALLOW_OPEN=1 where the network alone keeps strangers out.
# NATS_URL names a NATS server elsewhere. The stop timeout is SHUTDOWN_S (20 seconds) and a reserve.
# `docker run … tipstream settings` lists every setting, its value and its meaning.

ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/tipstream

# The dependencies are a layer of their own, which a change of code leaves as it is.
COPY setup.cfg pyproject.toml ./
RUN python -c "import configparser as c; p = c.ConfigParser(); p.read('setup.cfg'); print(p['options']['install_requires'])" \
        > /tmp/requirements.txt \
    && /opt/tipstream/bin/pip install --requirement /tmp/requirements.txt

COPY app app
COPY streams streams
COPY state state
COPY prompts prompts
COPY models models
RUN pip wheel --no-deps --wheel-dir /wheels . \
    && /opt/tipstream/bin/pip install --no-deps /wheels/*.whl

FROM ${PYTHON_IMAGE}
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin tipstream \
    && install -d -o tipstream -g tipstream -m 0750 /var/lib/tipstream
COPY --from=build /opt/tipstream /opt/tipstream
ENV PATH=/opt/tipstream/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    STATE_DIR=/var/lib/tipstream
USER tipstream
VOLUME /var/lib/tipstream
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://localhost:' + (os.environ.get('HTTP_PORT') or '8080') + '/health/live', timeout=2)"]
ENTRYPOINT ["python", "-m", "app"]
CMD ["worker"]
