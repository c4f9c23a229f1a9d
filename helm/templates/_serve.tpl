{{/* The settings of cluster/config.py: the chart's own over values' config. */}}
{{- define "ling.settings" -}}
{{- $v := .Values -}}
{{- $router := dict "replicas" $v.router.replicas "resources" (dict "router" 1) -}}
{{- if $v.apiKeys.secretName }}{{- $_ := set $router "api_keys" "/etc/ling/api-keys/keys" }}{{- end -}}
{{- $own := dict
      "device" $v.device "host" "0.0.0.0" "port" $v.router.port "drain_s" $v.drainSeconds
      "prefill" (include "ling.pool" (list $v.prefill "prefill") | fromYaml)
      "decode" (include "ling.pool" (list $v.decode "decode") | fromYaml)
      "router" $router -}}
{{- if and (eq $v.device "cuda") (ne $v.gpu.type "other") (ne $v.model.format "other") }}{{- $_ := set $own "card" $v.gpu.type }}{{- end -}}
{{- if include "ling.mounts" . }}{{- $_ := set $own "model" (include "ling.modelPath" .) }}{{- end -}}
{{- with include "ling.fetches" . }}{{- $_ := set $own "model" . }}{{- $_ := set $own "model_cache" "/cache" }}{{- end -}}
{{- with $v.model.servedName | default (include "ling.mounts" .) }}{{- $_ := set $own "served_name" . }}{{- end -}}
{{- mergeOverwrite (deepCopy $v.config) $own | toYaml -}}
{{- end -}}

{{- define "ling.pool" -}}
{{- $pool := index . 0 -}}
replicas: {{ $pool.replicas }}
tp: {{ $pool.tp }}
resources: { {{- index . 1 }}: 1}
{{- with $pool.maxReplicas }}
max_replicas: {{ . }}
{{- end }}
{{- end -}}

{{- define "ling.serveConfig" -}}
proxy_location: Disabled
applications:
  - name: ling
    import_path: cluster.app:build
    route_prefix: /
    args: {{- include "ling.settings" . | nindent 6 }}
{{- end -}}
