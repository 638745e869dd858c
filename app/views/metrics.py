"""The metrics for a Prometheus server to scrape; app/metrics.py makes them."""

from aiohttp import web
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from app.metrics import Metrics
from app.operations import Answer, Operation


def metrics_routes(metrics: Metrics) -> web.RouteTableDef:
    """The route ``/metrics``, in Prometheus' text format."""
    routes = web.RouteTableDef()

    @routes.get("/metrics")
    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    return routes


OPERATIONS = (
    Operation(
        method="GET",
        path="/metrics",
        tag="metrics",
        summary="Shows the metrics of this process",
        description="For a Prometheus server to scrape.",
        answers=(
            Answer(
                description="Every metric, with its meaning.",
                type=str,
                media_type=CONTENT_TYPE_PLAIN_0_0_4,
                example="# HELP process_cpu_seconds_total Total user and system CPU time spent in seconds.\n",
            ),
        ),
    ),
)
