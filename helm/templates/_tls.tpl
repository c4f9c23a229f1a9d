{{/* Of every container that speaks with Ray. */}}
{{- define "ling.tlsEnv" -}}
- {name: RAY_USE_TLS, value: "1"}
- {name: RAY_TLS_SERVER_CERT, value: /etc/ling/tls/tls.crt}
- {name: RAY_TLS_SERVER_KEY, value: /etc/ling/tls/tls.key}
- {name: RAY_TLS_CA_CERT, value: /etc/ling/tls/ca.crt}
{{- end -}}

{{/* Makes the pod's certificate. Ray compares names with where it connects to: a pod's address, or the head's Service. */}}
{{- define "ling.certificate" -}}
- name: certificate
  image: {{ include "ling.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [sh, -c]
  args:
    - >-
      cp /etc/ling/ca/tls.crt /etc/ling/tls/ca.crt &&
      exec openssl req -x509 -CA /etc/ling/ca/tls.crt -CAkey /etc/ling/ca/tls.key -days 3650
      -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=ling
      -extensions usr_cert
      -addext "subjectAltName=IP:$POD_IP,IP:127.0.0.1,DNS:localhost,DNS:*.{{ .Release.Namespace }}.svc.cluster.local"
      -keyout /etc/ling/tls/tls.key -out /etc/ling/tls/tls.crt
  env:
    - {name: HOME, value: /tmp}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
  resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 64Mi}}
  securityContext: {{- include "ling.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: tls, mountPath: /etc/ling/tls}
    - {name: ca, mountPath: /etc/ling/ca, readOnly: true}
{{- end -}}
