"""Grafana's boards, and the alerts beside them as code; `cluster.dashboards.write` writes the committed files."""
