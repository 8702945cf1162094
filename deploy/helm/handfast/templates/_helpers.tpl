{{- define "handfast.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "handfast.labels" -}}
app.kubernetes.io/name: handfast
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "handfast.caAddress" -}}
{{ .Values.ca.address | default (printf "handfast-ca.%s.svc:%v" .Release.Namespace .Values.ca.port) }}
{{- end }}

{{- /* What a component serves metrics on, and where its probes find it: ADDRESS:PORT. */ -}}
{{- define "handfast.metricsHost" -}}
{{ if .Values.metrics.expose }}$(HOST_IP){{ else }}127.0.0.1{{ end }}
{{- end }}

{{- define "handfast.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: {{ .port }}{{ if not .expose }}, host: 127.0.0.1{{ end }}}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: {{ .port }}{{ if not .expose }}, host: 127.0.0.1{{ end }}}
  periodSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: {{ .port }}{{ if not .expose }}, host: 127.0.0.1{{ end }}}
  periodSeconds: 5
{{- end }}
