{{/* A cluster has one operator: its objects have fixed names, whatever the release is called. */}}

{{- define "llmops.image" -}}
{{- $tag := default .Chart.AppVersion .Values.image.tag -}}
{{- if hasPrefix "sha256:" $tag -}}
{{ .Values.image.repository }}@{{ $tag }}
{{- else -}}
{{ .Values.image.repository }}:{{ $tag }}
{{- end -}}
{{- end }}

{{- define "llmops.selector" -}}
app.kubernetes.io/name: llmops
app.kubernetes.io/component: {{ . }}
{{- end }}

{{/* Called with (list context component). */}}
{{- define "llmops.labels" -}}
{{- $root := index . 0 -}}
{{ include "llmops.selector" (index . 1) }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end }}

{{- define "llmops.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "llmops.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What both Deployments' pods share. Called with (list context values). */}}
{{- define "llmops.podPlacement" -}}
{{- $root := index . 0 }}
{{- $values := index . 1 }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- define "llmops.env" -}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: LLMOPS_LOG_FORMAT
  value: {{ .Values.logFormat }}
{{- end }}

{{/* RoleBinding in the watched namespace, else ClusterRoleBinding. Called with (list context name). */}}
{{- define "llmops.binding" -}}
{{- $root := index . 0 }}
{{- $name := index . 1 }}
apiVersion: rbac.authorization.k8s.io/v1
{{- if $root.Values.watchNamespace }}
kind: RoleBinding
{{- else }}
kind: ClusterRoleBinding
{{- end }}
metadata:
  name: {{ $name }}
  {{- with $root.Values.watchNamespace }}
  namespace: {{ . }}
  {{- end }}
  labels: {{- include "llmops.labels" (list $root "rbac") | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ $name }}
subjects:
- kind: ServiceAccount
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
{{- end }}
