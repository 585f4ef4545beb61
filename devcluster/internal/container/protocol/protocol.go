// Package protocol is what the node and the init process inside a container say
// to each other. It imports only the standard library, because the init process
// runs before the rest of this large binary is initialised.
package protocol

// Argv0 is the process name under which the binary becomes a container's init.
const Argv0 = "devcluster-container"

// Descriptors that the init process inherits.
const (
	// SpecFD is a pipe with the JSON of Spec.
	SpecFD = 3
	// ControlFD is a SOCK_SEQPACKET socket, one JSON message a packet.
	ControlFD = 4
)

// Spec is everything the init process needs to build the container and run its program.
type Spec struct {
	Hostname string
	// Root is an existing empty host directory that becomes the new root's mount point.
	Root string
	// Command is the program and its arguments, looked up on the PATH of Env.
	Command []string
	Env     []string
	Dir     string
	Mounts  []Mount
	// Visible lists host paths below otherwise hidden folders (such as /tmp)
	// that the program needs, mounted read-only at the same place.
	Visible []string
	// ReadOnlyRoot makes everything but the mounts read-only.
	ReadOnlyRoot bool
	// LogFile is a host path; the file is created, lines are appended in CRI format.
	LogFile string
	// MemoryLimit is in bytes of anonymous and shared memory; 0 means none.
	MemoryLimit int64
}

// Mount shows a host path inside the container.
type Mount struct {
	Source   string
	Target   string
	ReadOnly bool
}

// Request is a message from the node to the init process. For Exec, the packet
// carries the descriptors of stdin, stdout and stderr.
type Request struct {
	ID     int      `json:"id"`
	Op     string   `json:"op"`
	Signal int      `json:"signal,omitempty"`
	Argv   []string `json:"argv,omitempty"`
	TTY    bool     `json:"tty,omitempty"`
}

// Operations of a Request.
const (
	OpSignal = "signal"
	OpExec   = "exec"
	OpKill   = "kill-exec"
)

// Event is a message from the init process to the node.
type Event struct {
	ID      int    `json:"id,omitempty"`
	Kind    string `json:"kind"`
	Message string `json:"message,omitempty"`
	Code    int    `json:"code,omitempty"`
	Signal  int    `json:"signal,omitempty"`
	OOM     bool   `json:"oom,omitempty"`
}

// Kinds of an Event.
const (
	// Started: the container's program runs.
	Started = "started"
	// Failed: the container could not be built or its program not be started.
	Failed = "failed"
	// Exited: the container's program ended; the init process ends right after.
	Exited = "exited"
	// ExecExited and ExecFailed answer an exec request.
	ExecExited = "exec-exited"
	ExecFailed = "exec-failed"
)
