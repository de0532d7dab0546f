{{/* The name of all objects. */}}
{{- define "event-broadcaster.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride }}
{{- else if contains .Chart.Name .Release.Name }}{{ .Release.Name }}
{{- else }}{{ printf "%s-%s" (.Release.Name | trunc 32 | trimSuffix "-") .Chart.Name }}
{{- end }}
{{- end }}

{{- define "event-broadcaster.serviceAccountName" -}}
{{ .Values.serviceAccount.name | default (ternary (include "event-broadcaster.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{/* The labels by which all selectors find the pods of this release. */}}
{{- define "event-broadcaster.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: server
{{- end }}

{{/* The labels of every object. */}}
{{- define "event-broadcaster.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/part-of: event-broadcaster
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "event-broadcaster.image" -}}
{{ with .Values.image.registry }}{{ . }}/{{ end }}{{ .Values.image.repository }}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/*
Seconds until a stopping pod is killed: preStop 5, DRAIN_SECONDS, closing sockets 6, requests in flight 10, flushing
spans 5, exit 5; 14 in reserve.
*/}}
{{- define "event-broadcaster.graceSeconds" -}}
{{ dig "DRAIN_SECONDS" 10 .Values.settings | ceil | int | add 45 }}
{{- end }}

{{/* How fast pods are added and removed, for the HPA and for KEDA. */}}
{{- define "event-broadcaster.scalingBehavior" -}}
# A load that lasts less than three minutes adds no pod: a failover of Redis, a burst, or clients that are counted twice
# while they reconnect. A pod has capacity for twice its target.
scaleUp:
  stabilizationWindowSeconds: 180
  selectPolicy: Max
  policies:
    - type: Pods
      value: 2
      periodSeconds: 60
    - type: Percent
      value: 50
      periodSeconds: 60
# Removing a pod drains it, and its clients reconnect elsewhere. Pods are removed one at a time, each after the drain of
# the previous one. A short drop in load, which a reconnect storm may follow, removes none.
{{- $period := max 120 (include "event-broadcaster.graceSeconds" . | int) }}
scaleDown:
  stabilizationWindowSeconds: {{ max 900 (mul 2 $period) }}
  selectPolicy: Min
  policies:
    - type: Pods
      value: 1
      periodSeconds: {{ $period }}
{{- end }}
