package probes

import "testing"

func TestTracker(t *testing.T) {
	for name, c := range map[string]struct {
		tracker Tracker
		results string // s(uccess), f(ailure)
		reached string // y or n for each
		healthy bool
	}{
		"readiness comes with the first success":    {Tracker{FailureThreshold: 3}, "s", "y", true},
		"readiness waits for two successes":         {Tracker{SuccessThreshold: 2, FailureThreshold: 1}, "sfss", "nyny", true},
		"liveness survives two failures":            {Tracker{Healthy: true, FailureThreshold: 3}, "ffsff", "nnynn", true},
		"liveness ends with the third":              {Tracker{Healthy: true, FailureThreshold: 3}, "sffff", "ynnyy", false},
		"startup fails though it was never healthy": {Tracker{FailureThreshold: 2}, "ff", "ny", false},
		"zero thresholds count as one":              {Tracker{}, "sf", "yy", false},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			for _, r := range c.results {
				got += map[bool]string{true: "y", false: "n"}[c.tracker.Observe(r == 's')]
			}
			if got != c.reached || c.tracker.Healthy != c.healthy {
				t.Fatalf("reached %s, healthy %v", got, c.tracker.Healthy)
			}
		})
	}
}
