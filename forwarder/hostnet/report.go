package hostnet

import "fmt"

// A Report says what a call changed and what it found.
type Report struct {
	Added, Removed []string // one phrase each, like "route 10.244.0.0/16 dev penstock0"
	Findings       []Finding
}

// Changed reports whether anything was added or removed.
func (r Report) Changed() bool { return len(r.Added)+len(r.Removed) > 0 }

func (r *Report) add(format string, a ...any) { r.Added = append(r.Added, fmt.Sprintf(format, a...)) }
func (r *Report) remove(format string, a ...any) {
	r.Removed = append(r.Removed, fmt.Sprintf(format, a...))
}
func (r *Report) find(f ...Finding) { r.Findings = append(r.Findings, f...) }

// Severity says what a finding means for traffic.
type Severity string

const (
	Info    Severity = "info"    // good to know
	Warning Severity = "warning" // something does not work, or not always
	Failure Severity = "failure" // pods cannot work as configured
)

// A Finding is something about the host that its owner should know.
type Finding struct {
	Severity Severity `json:"severity"`
	Subject  string   `json:"subject"`          // "net.ipv4.ip_forward", "iptables FORWARD", …
	Problem  string   `json:"problem"`          // one sentence: what is, and what follows from it
	Remedy   string   `json:"remedy,omitempty"` // one sentence or command; "" if nothing is to be done
	Fixed    bool     `json:"fixed,omitempty"`  // the daemon has set it itself
}

func (f Finding) String() string {
	s := f.Subject + ": " + f.Problem
	if f.Remedy != "" && !f.Fixed {
		s += " (" + f.Remedy + ")"
	}
	return s
}
