{{/* A worker group whose pods each offer one of the group's custom resource. Takes (root, component, values). */}}
{{- define "ling.group" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $group := index . 2 -}}
- groupName: {{ $component }}
  replicas: {{ $group.replicas }}
  minReplicas: {{ $group.replicas }}
  maxReplicas: {{ $group.maxReplicas | default $group.replicas }}
  numOfHosts: 1
  rayStartParams:
    resources: {{ printf "{\"%s\": 1}" $component | squote | quote }}
  template: {{- include "ling.pod" . | nindent 4 }}
{{- end -}}

{{/* A pod's template. Takes (root, component, values). */}}
{{- define "ling.pod" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $group := index . 2 -}}
{{- $v := $root.Values -}}
{{- $ranks := and (has $component (list "prefill" "decode")) (eq $v.device "cuda") -}}
{{- $annotations := deepCopy ($group.podAnnotations | default dict) -}}
{{- if and (eq $component "head") (ne $v.upgrade.strategy "None") }}
{{- /* Other settings are another cluster too: Serve alone would restart a pool's workers in the places they have. */ -}}
{{- $_ := set $annotations "ling/settings" (include "ling.settings" $root | sha256sum | trunc 16) -}}
{{- end -}}
metadata:
  labels: {{- merge (include "ling.selector" (list $root $component) | fromYaml) ($group.podLabels | default dict) | toYaml | nindent 4 }}
  {{- with $annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- with include "ling.serviceAccount" $root }}
  serviceAccountName: {{ . }}
  {{- end }}
  {{- range $name := list "priorityClassName" "runtimeClassName" "schedulerName" }}
  {{- with get $group $name }}
  {{ $name }}: {{ . }}
  {{- end }}
  {{- end }}
  {{- if $group.hostNetwork }}
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  {{- end }}
  {{- if $v.autoscaling.enabled }}
  restartPolicy: Never
  {{- end }}
  # Only Ray's autoscaler, beside the head, speaks with Kubernetes.
  automountServiceAccountToken: {{ and (eq $component "head") $v.autoscaling.enabled }}
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ if eq $component "head" }}30{{ else }}{{ include "ling.graceSeconds" $root }}{{ end }}
  securityContext: {{- include "ling.podSecurity" $root | nindent 4 }}
  {{- with $v.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- $selector := ternary (merge (deepCopy $group.nodeSelector) $v.gpu.nodeSelector) $group.nodeSelector $ranks }}
  {{- with $selector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- $tolerations := ternary (concat $group.tolerations $v.gpu.tolerations) $group.tolerations $ranks }}
  {{- with $tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $group.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $group.topologySpread }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: {{ .topologyKey }}
      whenUnsatisfiable: {{ .whenUnsatisfiable }}
      labelSelector:
        matchLabels: {{- include "ling.selector" (list $root $component) | nindent 10 }}
  {{- end }}
  {{- $waits := and (eq $component "head") $v.model.shard.enabled }}
  {{- $own := include "ling.ownTls" $root }}
  {{- if or $own $waits $group.initContainers }}
  initContainers:
  {{- end }}
    {{- if $own }}
    {{- include "ling.certificate" $root | nindent 4 }}
    {{- end }}
    {{- if $waits }}
    # No worker starts before the head does, so none waits with its GPUs for the weights.
    - name: wait-for-weights
      image: {{ include "ling.image" $root }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      command: [sh, -c]
      args: ["until test -d '{{ include "ling.modelPath" $root }}'; do echo 'waiting for job {{ include "ling.shardJob" $root }}'; sleep 10; done"]
      resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 64Mi}}
      securityContext: {{- include "ling.containerSecurity" $root | nindent 8 }}
      volumeMounts: [{name: models, mountPath: /models, readOnly: true}]
    {{- end }}
    {{- with $group.initContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  containers:
    - name: {{ ternary "ray-head" "ray-worker" (eq $component "head") }}
      image: {{ include "ling.image" $root }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      env: {{- include "ling.env" $root | nindent 8 }}
        {{- if include "ling.compiles" (list $root $component) }}
        - {name: TRITON_CACHE_DIR, value: /kernels}
        {{- end }}
        {{- if $own }}{{ include "ling.tlsEnv" $root | nindent 8 }}{{ end }}
        {{- include "ling.fetchEnv" $root | nindent 8 }}
        {{- with $group.env }}{{ toYaml . | nindent 8 }}{{ end }}
      {{- if or $v.model.secretName $group.envFrom }}
      envFrom:
        {{- with $v.model.secretName }}
        - secretRef: {name: {{ . | quote }}}
        {{- end }}
        {{- with $group.envFrom }}{{ toYaml . | nindent 8 }}{{ end }}
      {{- end }}
      ports: {{- include "ling.ports" (list $root $component) | nindent 8 }}
      {{- $resources := include "ling.resources" . | fromYaml }}
      {{- $limits := deepCopy ($resources.limits | default dict) }}
      {{- if $ranks }}{{- $_ := set $limits $v.gpu.resource $group.tp }}{{- end }}
      resources: {{- merge (dict "limits" $limits) $resources | toYaml | nindent 8 }}
      securityContext: {{- include "ling.mainSecurity" $group | nindent 8 }}
      {{- if eq $component "router" }}
      readinessProbe: {httpGet: {path: /health, port: http}, periodSeconds: 2, failureThreshold: 3}
      {{- else if ne $component "head" }}
      readinessProbe: {httpGet: {path: /api/healthz, port: agent}, periodSeconds: 5, failureThreshold: 3}
      {{- end }}
      {{- if ne $component "head" }}
      # Replicas are started elsewhere, or let their streams end here, before the node goes.
      lifecycle: {preStop: {exec: {command: [python, -m, cluster.leave, "{{ add $v.drainSeconds 45 }}"]}}}
      {{- end }}
      volumeMounts: {{- include "ling.volumeMounts" (list $root $component) | nindent 8 }}
        {{- if $group.shmSize }}
        - {name: shm, mountPath: /dev/shm}
        {{- end }}
        {{- with $group.extraVolumeMounts }}{{ toYaml . | nindent 8 }}{{ end }}
    {{- with $group.sidecars }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes: {{- include "ling.volumes" (list $root $component) | nindent 4 }}
    {{- with $group.shmSize }}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: {{ . }}}
    {{- end }}
    {{- with $group.extraVolumes }}{{ toYaml . | nindent 4 }}{{ end }}
{{- end -}}

{{/* Takes (root, component). */}}
{{- define "ling.ports" -}}
{{- if eq (index . 1) "head" -}}
- {name: gcs-server, containerPort: 6379}
- {name: dashboard, containerPort: 8265}
# KubeRay makes the Service only if the head names such a port; nothing listens on it.
- {name: serve, containerPort: {{ (index . 0).Values.router.port }}}
{{ else -}}
- {name: agent, containerPort: 52365}
{{ end -}}
{{- if eq (index . 1) "router" -}}
- {name: http, containerPort: {{ (index . 0).Values.router.port }}}
{{ end -}}
- {name: metrics, containerPort: 8080}
{{- end -}}
