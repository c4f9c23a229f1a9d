# What every process of a Ray cluster runs with; the recipes beside it source it before `ray start`, and so does who
# calls `ray` or `serve` on a node.
export PATH="$HOME/ling-venv/bin:$PATH"
# Whoever has not the token of ~/.ray/auth_token gets nothing from Ray. All processes need the same mode.
export RAY_AUTH_MODE=token
# For TLS between nodes (docs/SECURITY.md), export here RAY_USE_TLS=1, RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and
# RAY_TLS_CA_CERT.
# For weights from a hub or a bucket (docs/WEIGHTS.md), export here HF_TOKEN, AWS_REGION and the like: every node fetches.
export RAY_USAGE_STATS_ENABLED=0
export RAY_worker_niceness=0
# A lost node is noticed after seconds, not after a minute.
export RAY_health_check_initial_delay_ms=0
export RAY_health_check_period_ms=500
export RAY_health_check_timeout_ms=1000
export RAY_health_check_failure_threshold="${RAY_health_check_failure_threshold:-3}"
# What the head knows (its GCS) is on its disk: a GCS that is started anew, by cluster/keep_gcs.py or with the machine,
# knows it again, and nodes wait for it so long. To begin from nothing, remove the folder while Ray is stopped.
export RAY_gcs_storage="${RAY_gcs_storage:-rocksdb}"
export RAY_gcs_storage_path="$HOME/ling-gcs"
export RAY_gcs_rpc_server_reconnect_timeout_s=600
# How often workers report what pools are sized by.
