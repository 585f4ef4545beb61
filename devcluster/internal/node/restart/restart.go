// Package restart decides whether and when a container starts again.
package restart

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Delays between restarts. Kubernetes begins with ten seconds and goes to five
// minutes; on a developer's machine that only costs patience.
const (
	First = time.Second
	Limit = time.Minute
	// Forgiven is how long a container must have run for its history to be forgotten.
	Forgiven = 2 * time.Minute
)

// Backoff counts a container's restarts. The zero value is ready for use.
type Backoff struct{ next time.Duration }

// After returns how long to wait after a run of the given length. The first
// restart is immediate, as in Kubernetes.
func (b *Backoff) After(ran time.Duration) time.Duration {
	if ran >= Forgiven {
		b.next = 0
	}
	delay := b.next
	b.next = min(max(First, 2*b.next), Limit)
	return delay
}

// Wanted tells whether a container that ended so must start again.
func Wanted(policy corev1.RestartPolicy, exitCode int32) bool {
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return exitCode != 0
	default:
		return true
	}
}

// InitWanted is Wanted for an init container, which is finished by success.
func InitWanted(policy corev1.RestartPolicy, exitCode int32) bool {
	return exitCode != 0 && policy != corev1.RestartPolicyNever
}
