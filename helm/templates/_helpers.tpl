{{/* What everything is called. KubeRay adds up to 16 characters to it. */}}
{{- define "ling.name" -}}
{{- $name := ternary .Release.Name (printf "%s-ling" .Release.Name) (contains "ling" .Release.Name) -}}
{{- trunc 40 $name | trimSuffix "-" -}}
{{- end -}}

{{/* The Service that KubeRay keeps on the active cluster's routers. */}}
{{- define "ling.service" -}}
{{ include "ling.name" . }}-serve-svc
{{- end -}}

{{/* What is shown outside. Not /, /status and /metrics: what the cluster says of itself is for inside. */}}
{{- define "ling.paths" -}}
[/v1/, /tokenize, /detokenize, /health, /ready]
{{- end -}}

{{/* Labels that select pods. Takes (root, component). */}}
{{- define "ling.selector" -}}
app.kubernetes.io/name: ling
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "ling.labels" -}}
app.kubernetes.io/name: ling
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "ling.image" -}}
{{- $image := .Values.image -}}
{{- $tag := $image.tag | default (printf "%s-%s" .Chart.AppVersion .Values.device) -}}
{{ $image.repository }}{{ if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $tag }}{{ end }}
{{- end -}}

{{- define "ling.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "ling.name" .) "" .Values.serviceAccount.create) }}
{{- end -}}

{{/* Not empty where the checkpoint lies in a volume. */}}
{{- define "ling.mounts" -}}
{{- if eq .Values.model.source "folder" }}{{ .Values.model.path }}{{ end -}}
{{- end -}}

{{/* What is fetched; empty where nothing is. */}}
{{- define "ling.fetches" -}}
{{- if eq .Values.model.source "hub" }}hf://{{ .Values.model.repository }}{{ else if eq .Values.model.source "store" }}{{ .Values.model.prefix }}{{ end -}}
{{- end -}}

{{- define "ling.modelPath" -}}
/models/{{ .Values.model.path }}{{ if .Values.model.shard.enabled }}-tp{{ .Values.decode.tp }}{{ end }}
{{- end -}}

{{/* "true" where pods make their own certificates. */}}
{{- define "ling.ownTls" -}}
{{- if and .Values.tls.enabled (eq .Values.tls.source "chart") }}true{{ end -}}
{{- end -}}

{{/* Not empty where a component's compiled kernels outlive its pod. Takes (root, component). */}}
{{- define "ling.compiles" -}}
{{- $cache := (index . 0).Values.compileCache -}}
{{- if has (index . 1) (list "prefill" "decode") }}{{ $cache.existingClaim | default $cache.hostPath }}{{ end -}}
{{- end -}}

{{/* What a pod gets to end: draining, and what ending takes on top. */}}
{{- define "ling.graceSeconds" -}}
{{ add .Values.drainSeconds 60 }}
{{- end -}}

{{- define "ling.podSecurity" -}}
runAsNonRoot: true
{{- range $name := list "runAsUser" "runAsGroup" "fsGroup" }}
{{- with get $.Values.securityContext $name }}
{{ $name }}: {{ int64 . }}
{{- end }}
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "ling.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Only /tmp can be written: Ray's session and whatever libraries cache in the home folder go there. */}}
{{- define "ling.env" -}}
- {name: HOME, value: /tmp}
- {name: USER, value: ling}
- {name: PYTHONDONTWRITEBYTECODE, value: "1"}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: RAY_worker_niceness, value: "0"}
- {name: RAY_health_check_initial_delay_ms, value: "0"}
- {name: RAY_health_check_period_ms, value: "500"}
- {name: RAY_health_check_timeout_ms, value: "1000"}
- {name: RAY_health_check_failure_threshold, value: "3"}
{{- end -}}

{{/* Of the main container, of a component's own values. */}}
{{- define "ling.mainSecurity" -}}
{{- $security := include "ling.containerSecurity" . | fromYaml -}}
{{- with (.capabilities | default dict).add }}{{ $_ := set $security.capabilities "add" . }}{{ end -}}
{{- toYaml $security -}}
{{- end -}}

{{/* What a pod asks for where its values say nothing. Takes (root, component, values). */}}
{{- define "ling.resources" -}}
{{- $cpu := dict
      "head" (dict "requests" (dict "cpu" "500m" "memory" "2Gi") "limits" (dict "cpu" "2" "memory" "4Gi"))
      "router" (dict "requests" (dict "cpu" "250m" "memory" "1Gi") "limits" (dict "cpu" "1" "memory" "2Gi"))
      "prefill" (dict "requests" (dict "cpu" "500m" "memory" "2Gi") "limits" (dict "cpu" "2" "memory" "4Gi")) -}}
{{- $cuda := dict
      "head" (dict "requests" (dict "cpu" "2" "memory" "8Gi") "limits" (dict "cpu" "4" "memory" "8Gi"))
      "router" (dict "requests" (dict "cpu" "2" "memory" "4Gi") "limits" (dict "cpu" "4" "memory" "8Gi"))
      "prefill" (dict "requests" (dict "cpu" "8" "memory" "64Gi") "limits" (dict "cpu" "16" "memory" "128Gi")) -}}
{{- $by := ternary $cuda $cpu (eq (index . 0).Values.device "cuda") -}}
{{- (index . 2).resources | default (get $by (ternary "prefill" (index . 1) (eq (index . 1) "decode"))) | toYaml -}}
{{- end -}}

{{/* Takes (root, component). The head builds the application, so it looks for the keys' file too. */}}
{{- define "ling.volumeMounts" -}}
{{- $v := (index . 0).Values -}}
- {name: tmp, mountPath: /tmp}
{{- if include "ling.compiles" . }}
- {name: kernels, mountPath: /kernels}
{{- end }}
{{- if include "ling.ownTls" (index . 0) }}
- {name: tls, mountPath: /etc/ling/tls, readOnly: true}
{{- end }}
{{- if include "ling.mounts" (index . 0) }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- if include "ling.fetches" (index . 0) }}
- {name: cache, mountPath: /cache}
{{- end }}
{{- if and $v.apiKeys.secretName (has (index . 1) (list "head" "router")) }}
- {name: api-keys, mountPath: /etc/ling/api-keys, readOnly: true}
{{- end }}
{{- end -}}

{{- define "ling.volumes" -}}
{{- $v := (index . 0).Values -}}
- name: tmp
  emptyDir: {}
{{- if include "ling.compiles" . }}
- name: kernels
  {{- if $v.compileCache.hostPath }}
  hostPath: {path: {{ $v.compileCache.hostPath | quote }}, type: Directory}
  {{- else }}
  persistentVolumeClaim: {claimName: {{ $v.compileCache.existingClaim | quote }}}
  {{- end }}
{{- end }}
{{- if include "ling.ownTls" (index . 0) }}
- name: tls
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
- name: ca
  secret: {secretName: {{ $v.tls.caSecretName | quote }}, items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]}
{{- end }}
{{- if include "ling.mounts" (index . 0) }}
- name: models
  {{- include "ling.modelVolume" (index . 0) | nindent 2 }}
{{- end }}
{{- if include "ling.fetches" (index . 0) }}
- name: cache
  {{- include "ling.cacheVolume" . | nindent 2 }}
{{- end }}
{{- if and $v.apiKeys.secretName (has (index . 1) (list "head" "router")) }}
- name: api-keys
  secret: {secretName: {{ $v.apiKeys.secretName | quote }}, items: [{key: keys, path: keys}]}
{{- end }}
{{- end -}}

{{- define "ling.modelVolume" -}}
{{- if .Values.model.volume.hostPath -}}
hostPath: {path: {{ .Values.model.volume.hostPath | quote }}, type: Directory}
{{- else -}}
persistentVolumeClaim:
  claimName: {{ .Values.model.volume.existingClaim | default (printf "%s-models" (include "ling.name" .)) | quote }}
{{- end -}}
{{- end -}}

{{/* Takes (root, component). Head and routers, on nodes without GPUs, fetch some megabytes: no weights. */}}
{{- define "ling.cacheVolume" -}}
{{- $cache := (index . 0).Values.model.cache -}}
{{- if and $cache.hostPath (has (index . 1) (list "head" "router")) -}}
emptyDir: {}
{{- else if $cache.hostPath -}}
hostPath: {path: {{ $cache.hostPath | quote }}, type: Directory}
{{- else if $cache.existingClaim -}}
persistentVolumeClaim: {claimName: {{ $cache.existingClaim | quote }}}
{{- else -}}
emptyDir: {sizeLimit: {{ $cache.emptyDir.size }}}
{{- end -}}
{{- end -}}

{{/* Variables of containers that fetch. */}}
{{- define "ling.fetchEnv" -}}
{{- range $name, $value := .Values.model.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}
