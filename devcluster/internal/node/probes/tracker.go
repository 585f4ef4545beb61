// Package probes runs startup, readiness and liveness probes.
package probes

// Tracker is the state machine of one probe: it turns single results into a verdict
// that changes only after the thresholds.
type Tracker struct {
	// SuccessThreshold and FailureThreshold are consecutive results; 0 counts as 1.
	SuccessThreshold, FailureThreshold int
	// Healthy is the verdict; set it to the probe's initial one.
	Healthy bool

	run  int
	last bool
	seen bool
}

// Observe takes one result. reached is true whenever the run of equal results is at
// or past its threshold, also when the verdict was the same before: the first
// failure verdict of a startup probe matters although it begins as unhealthy.
func (t *Tracker) Observe(ok bool) (reached bool) {
	if t.seen && ok == t.last {
		t.run++
	} else {
		t.run, t.last, t.seen = 1, ok, true
	}
	threshold := t.FailureThreshold
	if ok {
		threshold = t.SuccessThreshold
	}
	if t.run < max(threshold, 1) {
		return false
	}
	t.Healthy = ok
	return true
}
