{{- define "weft.name" -}}
{{- if .Values.revision }}weft-control-plane-{{ .Values.revision }}{{ else }}weft-control-plane{{ end }}
{{- end }}

{{- define "weft.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "weft.name" .) }}
{{- end }}

{{/* Roles of the cluster are named by namespace too: two meshes may be in one cluster. */}}
{{- define "weft.clusterName" -}}
{{ include "weft.name" . }}-{{ .Release.Namespace }}
{{- end }}

{{- define "weft.selector" -}}
app.kubernetes.io/name: weft-control-plane
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "weft.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{ include "weft.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: weft
istio.io/rev: {{ .Values.revision | default "default" }}
{{- end }}
