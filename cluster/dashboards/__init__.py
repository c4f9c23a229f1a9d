"""Grafana's boards and Prometheus' alerts as code; `cluster.dashboards.write` writes their committed files."""
