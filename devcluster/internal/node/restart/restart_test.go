package restart

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func TestBackoffGrowsAndForgives(t *testing.T) {
	var b Backoff
	for i, want := range []time.Duration{0, 1, 2, 4, 8, 16, 32, 60, 60} {
		if got := b.After(time.Second); got != want*time.Second {
			t.Fatalf("restart %d after %s, want %ds", i, got, want)
		}
	}
	if got := b.After(Forgiven); got != 0 {
		t.Fatalf("after a long run: %s", got)
	}
	if got := b.After(0); got != First {
		t.Fatalf("then: %s", got)
	}
}

func TestWanted(t *testing.T) {
	for _, c := range []struct {
		policy     corev1.RestartPolicy
		code       int32
		main, init bool
	}{
		{corev1.RestartPolicyAlways, 0, true, false},
		{corev1.RestartPolicyAlways, 1, true, true},
		{corev1.RestartPolicyOnFailure, 0, false, false},
		{corev1.RestartPolicyOnFailure, 137, true, true},
		{corev1.RestartPolicyNever, 0, false, false},
		{corev1.RestartPolicyNever, 1, false, false},
	} {
		if Wanted(c.policy, c.code) != c.main || InitWanted(c.policy, c.code) != c.init {
			t.Errorf("%s, exit %d", c.policy, c.code)
		}
	}
}
