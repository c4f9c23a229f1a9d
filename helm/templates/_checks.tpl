{{/* What a schema can't say. Every message starts with the value's path. */}}
{{- define "ling.checks" -}}
{{- $v := .Values -}}
{{- if and $v.model.shard.enabled $v.prefill.replicas (ne (int $v.prefill.tp) (int $v.decode.tp)) -}}
{{- fail (printf "prefill.tp: %d differs from decode.tp %d, and model.shard lays the weights out for one of them; give both pools the same tp, or turn model.shard.enabled off" (int $v.prefill.tp) (int $v.decode.tp)) -}}
{{- end -}}
{{- range $name, $pool := dict "prefill" $v.prefill "decode" $v.decode -}}
{{- if kindIs "invalid" $pool.maxReplicas | not -}}
{{- if not $v.autoscaling.enabled -}}
{{- fail (printf "%s.maxReplicas: needs autoscaling.enabled" $name) -}}
{{- end -}}
{{- if or (lt (int $pool.maxReplicas) (int $pool.replicas)) (eq (int $pool.replicas) 0) -}}
{{- fail (printf "%s.maxReplicas: %d with %d replicas; a pool that grows begins with at least 1 worker and at most maxReplicas" $name (int $pool.maxReplicas) (int $pool.replicas)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $given := without (list $v.model.volume.existingClaim $v.model.volume.hostPath (ternary "create" "" $v.model.volume.create.enabled)) "" -}}
{{- $cache := without (list $v.model.cache.existingClaim $v.model.cache.hostPath (ternary "emptyDir" "" $v.model.cache.emptyDir.enabled)) "" -}}
{{- if eq $v.model.source "folder" -}}
{{- if and $v.model.path (ne (len $given) 1) -}}
{{- fail (printf "model.volume: model.path needs exactly one of existingClaim, hostPath and create.enabled, found %d" (len $given)) -}}
{{- end -}}
{{- range $name := list "repository" "prefix" "secretName" "serviceAccountName" "env" -}}
{{- if get $v.model $name -}}
{{- fail (printf "model.%s: a folder is not fetched; set model.source to hub or store" $name) -}}
{{- end -}}
{{- end -}}
{{- if or $cache $v.model.prepull.enabled -}}
{{- fail (printf "model.%s: a folder is not fetched; set model.source to hub or store" (ternary "cache" "prepull.enabled" (gt (len $cache) 0))) -}}
{{- end -}}
{{- else -}}
{{- $needed := ternary "repository" "prefix" (eq $v.model.source "hub") -}}
{{- $other := ternary "prefix" "repository" (eq $v.model.source "hub") -}}
{{- if not (get $v.model $needed) -}}
{{- fail (printf "model.%s: source %s needs it" $needed $v.model.source) -}}
{{- end -}}
{{- if get $v.model $other -}}
{{- fail (printf "model.%s: source %s does not read it" $other $v.model.source) -}}
{{- end -}}
{{- if $given -}}
{{- fail (printf "model.volume: source %s fetches into model.cache; leave %s out" $v.model.source (first $given)) -}}
{{- end -}}
{{- if ne (len $cache) 1 -}}
{{- fail (printf "model.cache: source %s needs exactly one of existingClaim, hostPath and emptyDir.enabled, found %d" $v.model.source (len $cache)) -}}
{{- end -}}
{{- if and $v.model.prepull.enabled (not $v.model.cache.hostPath) -}}
{{- fail "model.prepull.enabled: needs model.cache.hostPath; other caches are not a node's" -}}
{{- end -}}
{{- end -}}
{{- if and $v.model.shard.enabled (not (include "ling.mounts" .)) -}}
{{- fail "model.shard.enabled: needs model.source folder and model.path; what is fetched, and the embedded checkpoint, is not sharded" -}}
{{- end -}}
{{- if and $v.model.shard.enabled $v.model.volume.hostPath -}}
{{- fail "model.shard.enabled: needs a claim (model.volume.existingClaim or create), for a hostPath is another folder on every node and the Job writes to one of them" -}}
{{- end -}}
{{- if eq $v.upgrade.strategy "NewClusterWithIncrementalUpgrade" -}}
{{- if not (and $v.autoscaling.enabled $v.upgrade.incremental.gatewayClassName) -}}
{{- fail "upgrade.strategy: NewClusterWithIncrementalUpgrade needs autoscaling.enabled and upgrade.incremental.gatewayClassName" -}}
{{- end -}}
{{- end -}}
{{- if ne (eq $v.headState.storage "redis") (ne $v.headState.redis.address "") -}}
{{- fail "headState.redis.address: goes with headState.storage redis" -}}
{{- end -}}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs: a route needs a Gateway that it belongs to" -}}
{{- end -}}
{{- if and $v.prometheusRule.enabled (not $v.podMonitor.enabled) -}}
{{- fail "prometheusRule.enabled: needs podMonitor.enabled, which labels the series that the rules read" -}}
{{- end -}}
{{- if ne (include "ling.ownTls" .) (ternary "" "true" (eq $v.tls.caSecretName "")) -}}
{{- fail "tls: enabled and caSecretName go together, with source chart alone" -}}
{{- end -}}
{{- if and $v.compileCache.existingClaim $v.compileCache.hostPath -}}
{{- fail "compileCache: give existingClaim or hostPath, not both" -}}
{{- end -}}
{{- if and (or $v.compileCache.existingClaim $v.compileCache.hostPath) (ne $v.device "cuda") -}}
{{- fail "compileCache: nothing is compiled without GPUs; set device to cuda, or leave it out" -}}
{{- end -}}
{{- if and $v.apiKeys.testSecretName (not $v.apiKeys.secretName) -}}
{{- fail "apiKeys.testSecretName: says nothing without apiKeys.secretName" -}}
{{- end -}}
{{- if and $v.ingress.enabled (not $v.ingress.host) -}}
{{- fail "ingress.host: an ingress needs one" -}}
{{- end -}}
{{- include "ling.configChecks" . -}}
{{- if and (eq $v.device "cuda") (or (include "ling.mounts" .) (include "ling.fetches" .)) (ne $v.model.format "other") (ne $v.gpu.type "other") -}}
{{- include "ling.memoryCheck" (dict "root" . "pool" "decode") -}}
{{- if $v.prefill.replicas -}}
{{- include "ling.memoryCheck" (dict "root" . "pool" "prefill") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What of `config` contradicts itself or the device, as `cluster.config.ClusterConfig` has it. */}}
{{- define "ling.configChecks" -}}
{{- $c := .Values.config -}}
{{- $gpus := eq .Values.device "cuda" -}}
{{- $collectives := default "auto" $c.collectives -}}
{{- $cache := default dict $c.cache -}}
{{- $router := default dict $c.router -}}
{{- if and (not $gpus) (has $collectives (list "nccl" "symm")) -}}
{{- fail (printf "config.collectives: %s needs GPUs; without them use auto, shm or gloo" $collectives) -}}
{{- end -}}
{{- if and $gpus (has $collectives (list "shm" "gloo")) -}}
{{- fail (printf "config.collectives: %s joins ranks without GPUs; on cuda use auto, nccl or symm" $collectives) -}}
{{- end -}}
{{- if and (not $gpus) (eq (default "auto" (default dict $c.handoff).channel) "nccl") -}}
{{- fail "config.handoff.channel: nccl needs GPUs; without them use auto, shm or gloo" -}}
{{- end -}}
{{- if and $c.verify (eq (default "auto" $c.load) "synthetic") -}}
{{- fail "config.verify: synthetic weights have no files to verify; set verify: false, or load: auto" -}}
{{- end -}}
{{- if $cache.disk_dir -}}
{{- if or (not $cache.host_bytes) (eq (default "on" $cache.mode) "off") -}}
{{- fail "config.cache.disk_dir: files are written from host memory; set config.cache.host_bytes, with mode on" -}}
{{- end -}}
{{- $session := int (default 3600 $router.session_ttl_s) -}}
{{- $files := int (default 86400 $cache.disk_ttl_s) -}}
{{- if lt $files $session -}}
{{- fail (printf "config.cache.disk_ttl_s: %d seconds would erase files of sessions, which are kept for config.router.session_ttl_s, %d; raise it or lower that" $files $session) -}}
{{- end -}}
{{- end -}}
{{- if and $c.pages $c.max_model_len -}}
{{- $page := int (default 64 $c.page_size) -}}
{{- if lt (mul $c.pages $page | int) (int $c.max_model_len) -}}
{{- fail (printf "config.pages: %d of %d tokens can't hold one sequence of config.max_model_len, %d; raise it or lower that" (int $c.pages) $page (int $c.max_model_len)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A pool's worker of tp cards against its model, by the planner's figures in files/memory.json; MiB and KiB a card. */}}
{{- define "ling.memoryCheck" -}}
{{- $v := .root.Values -}}
{{- $table := .root.Files.Get "files/memory.json" | fromJson -}}
{{- $tp := int (get $v .pool).tp -}}
{{- $slots := int (default 64 $v.config.slots) -}}
{{- $cache := default dict $v.config.cache -}}
{{- /* As `cluster.config.CacheSection.states` has it; one more state is left to captured steps. */ -}}
{{- $kept := ternary 0 (int (default $slots $cache.device_states)) (eq (default "on" $cache.mode) "off") -}}
{{- $step := int (default 8192 $v.config.max_step_tokens) -}}
{{- $length := int (default $table.context $v.config.max_model_len) -}}
{{- $page := int (default 64 $v.config.page_size) -}}
{{- $pages := div (add $length (sub $page 1)) $page | int -}}
{{- if kindIs "invalid" $v.config.pages | not -}}
{{- $pages = int $v.config.pages -}}
{{- end -}}
{{- $steps := list -}}
{{- range $table.step_tokens -}}{{- if ge (int .) $step -}}{{- $steps = append $steps (int .) -}}{{- end -}}{{- end -}}
{{- $contexts := list -}}
{{- range $table.contexts -}}{{- if ge (int .) $length -}}{{- $contexts = append $contexts (int .) -}}{{- end -}}{{- end -}}
{{- if not $steps -}}
{{- fail (printf "config.max_step_tokens: %d is more than the %d that memory was planned for; set gpu.type to other to go without the check" $step (int (last $table.step_tokens))) -}}
{{- end -}}
{{- if not $contexts -}}
{{- fail (printf "config.max_model_len: %d is more than the %d that %s reaches" $length (int (last $table.contexts)) $table.model) -}}
{{- end -}}
{{- $row := get (get $table.formats $v.model.format) (toString $tp) -}}
{{- $activations := get (get $row.activations_mib (first $contexts | toString)) (first $steps | toString) -}}
{{- $fixed := add $row.weights_mib $table.reserved_mib $activations | int -}}
{{- $sessions := div (add (mul $slots $row.slot_kib) (mul (add $kept 1) $row.state_kib) (mul $pages $page $table.token_bytes | div 1024)) 1024 | int -}}
{{- $card := get $table.cards $v.gpu.type | int -}}
{{- $need := add $fixed $sessions | int -}}
{{- if gt $need $card -}}
{{- fail (printf "%s.tp: a worker of %d %s has no memory for %s in %s: each card needs %d MiB (weights %d, other fixed %d, %d slots, %d kept states and %d pages of %d tokens %d) and has %d MiB to use; raise tp, lower config.slots, config.cache.device_states or config.max_model_len, or take a smaller format (ling plan --gpu %s --dtype %s --gpus-per-worker %d says more)" .pool $tp $v.gpu.type $table.model $v.model.format $need (int $row.weights_mib) (sub $fixed (int $row.weights_mib)) $slots $kept $pages $page $sessions $card $v.gpu.type $v.model.format $tp) -}}
{{- end -}}
{{- end -}}
