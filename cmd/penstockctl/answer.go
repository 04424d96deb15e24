package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/penstock-net/penstock/forwarder/config"
	"github.com/penstock-net/penstock/forwarder/control"
)

// What commands answer with -o json where no answer of the daemon is passed on.

// detachedPod is detach as JSON. The daemon does not tell whether there was anything to undo.
type detachedPod struct {
	Container string `json:"container"`
	Interface string `json:"interface"`
	Detached  bool   `json:"detached"`
}

// checkedConfig is config check as JSON.
type checkedConfig struct {
	Path     string    `json:"path"`
	Valid    bool      `json:"valid"`
	Mistakes []mistake `json:"mistakes"`
}

// mistake is a config.Problem with the names of its keys.
type mistake struct {
	File    string `json:"file"`
	Line    int    `json:"line"` // 0: it has no place in the file
	Column  int    `json:"column"`
	Key     string `json:"key"` // empty: the file as a whole
	Message string `json:"message"`
}

// reported is the mistakes of a file as they are printed.
type reported struct{ config.Errors }

func (r *reported) Error() string { return r.Report() }
func (r *reported) Unwrap() error { return r.Errors }

// exampleConfig is config example as JSON.
type exampleConfig struct {
	YAML string `json:"yaml"`
}

// cniInstalled is cni install as JSON.
type cniInstalled struct {
	Wrote    []string `json:"wrote"`
	Warnings []string `json:"warnings"`
}

// cniRemoved is cni uninstall as JSON; kept is a plugin that is not the one that install has written.
type cniRemoved struct {
	Removed []string `json:"removed"`
	Kept    []string `json:"kept"`
}

// capturedAll is the end of a capture as JSON.
type capturedAll struct {
	Captured int    `json:"captured"`
	Lost     uint64 `json:"lost"`
}

// failure is an error as JSON.
type failure struct {
	Status  int          `json:"status"` // the exit status
	Code    control.Code `json:"code"`
	Message string       `json:"message"`
}

// Codes of failures that are not the daemon's.
const (
	codeFailed      = control.Code("failed")
	codeUsage       = control.Code("usage")
	codeUnreachable = control.Code("unreachable")
	codeWarnings    = control.Code("warnings")
	codeNo          = control.Code("no")
)

// judge tells an error's exit status and code.
func (t *tool) judge(err error) failure {
	f := failure{exitFailed, codeFailed, err.Error()}
	var refused *control.Error
	if errors.As(err, &refused) {
		f.Code = refused.Code
	}
	var v *verdict
	var mistakes config.Errors
	var wrong *misuse
	switch {
	case errors.As(err, &v):
		f.Status = v.status
		f.Code = map[int]control.Code{exitFailed: codeFailed, exitUnreachable: codeUnreachable, exitWarnings: codeWarnings, exitNo: codeNo}[v.status]
	case !t.began, errors.As(err, &wrong):
		f.Status, f.Code = exitUsage, codeUsage
	case errors.Is(err, control.ErrUnreachable), errors.Is(err, context.DeadlineExceeded): // nobody there, or no answer in time
		f.Status, f.Code = exitUnreachable, codeUnreachable
	case errors.As(err, &mistakes):
		f.Status, f.Code = exitConfig, control.InvalidConfig
	case f.Code == control.InvalidConfig, f.Code == control.RestartRequired:
		f.Status = exitConfig
	}
	return f
}

// fail says what was wrong, and returns the exit status.
func (t *tool) fail(err error, args []string) int {
	f := t.judge(err)
	if t.output == "json" || !t.began && asksForJSON(args) {
		jsonLine(t.errs, map[string]failure{"error": f})
	} else {
		fmt.Fprintln(t.errs, "penstockctl:", err)
	}
	return f.Status
}

// asksForJSON looks for -o json in a command line that may never have been understood as far as there.
func asksForJSON(args []string) bool {
	for i, a := range args {
		switch {
		case a == "-o" || a == "--output":
			return i+1 < len(args) && args[i+1] == "json"
		case slices.Contains([]string{"-ojson", "-o=json", "--output=json"}, strings.TrimSpace(a)):
			return true
		}
	}
	return false
}

// jsonLine prints an object on one line: what goes to standard error, where other lines may stand beside it.
func jsonLine(to io.Writer, v any) { json.NewEncoder(to).Encode(v) }
