package cni

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// script puts a plugin made of shell into a directory that CNI_PATH has behind one that is not there.
func script(t *testing.T, name, text string) string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("CNI_PATH", "/nonexistent:"+dir)
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDelegate: what a plugin gets, and what becomes of what it says.
func TestDelegate(t *testing.T) {
	t.Setenv("CNI_COMMAND", "ADD")
	t.Setenv("CNI_CONTAINERID", "c1")
	t.Setenv("TRACEPARENT", "00-1-2-03")
	for _, test := range []struct {
		name, text string
		out        string // of one that ends well
		code       uint   // of an error that the plugin chose
		says       string
	}{
		{name: "environment and input", text: `echo "$CNI_COMMAND $CNI_CONTAINERID $TRACEPARENT"; env | grep -c ^CNI_COMMAND=; cat`, out: "CHECK c1 00-1-2-03\n1\nthe input"},
		{name: "it does not read", text: `exec 0<&-; echo fine`, out: "fine\n"},
		{name: "nothing to say", text: `cat >/dev/null`, out: ""},
		{name: "its code", text: `echo '{"cniVersion":"1.0.0","code":11,"msg":"later","details":"busy"}'; exit 1`, code: 11, says: "later; busy"},
		{name: "its code, and noise", text: `echo noise >&2; echo '{"code":103,"msg":"none left"}'; exit 7`, code: 103, says: "none left"},
		{name: "no code", text: `echo '{"msg":"no"}'; exit 1`, says: "no"},
		{name: "only noise", text: `echo "no such pool" >&2; exit 2`, says: `it failed and said "no such pool\n": exit status 2`},
		{name: "silent", text: `exit 3`, says: "it failed and did not say why: exit status 3"},
		{name: "shot", text: `kill -9 $$`, says: "it failed and did not say why: signal: killed"},
		{name: "garbage", text: `echo "panic: x"; exit 1`, says: `it failed and printed "panic: x\n", which is no error of CNI: exit status 1`},
		{name: "null", text: `echo null; exit 1`, says: "which is no error of CNI: exit status 1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			script(t, "p", test.text)
			out, err := delegate(t.Context(), "p", "CHECK", []byte("the input"))
			var e *types.Error
			errors.As(err, &e)
			switch {
			case test.says == "" && (err != nil || string(out) != test.out):
				t.Errorf("%q, %v; want %q", out, err, test.out)
			case test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says) || len(out) > 0):
				t.Errorf("%q, %v; want %s", out, err, test.says)
			case test.code != 0 && (e == nil || e.Code != test.code):
				t.Errorf("%#v, want code %d", err, test.code)
			}
		})
	}
}

// TestDelegateNoise: what a plugin that ends well writes to standard error is not lost.
func TestDelegateNoise(t *testing.T) {
	script(t, "p", "echo deprecated >&2")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	old := os.Stderr
	os.Stderr = w
	_, err = delegate(t.Context(), "p", "DEL", nil)
	os.Stderr = old
	w.Close()
	if b, _ := io.ReadAll(r); err != nil || string(b) != "deprecated\n" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestFindPlugin(t *testing.T) {
	path := script(t, "p", "")
	first := t.TempDir()
	if err := os.Mkdir(filepath.Join(first, "p"), 0o700); err != nil { // a directory is no plugin
		t.Fatal(err)
	}
	if err := os.Symlink(path, filepath.Join(first, "linked")); err != nil {
		t.Fatal(err)
	}
	both := first + ":" + filepath.Dir(path)
	for _, test := range []struct{ name, in, want, says string }{
		{"p", both, path, ""},
		{"linked", both, filepath.Join(first, "linked"), ""},
		{"q", both, "", "it is not found in CNI_PATH " + both},
		{"p", "", "", "CNI_PATH is empty"},
		{"", both, "", `"" is not the name of a plugin`},
		{"../p", both, "", `"../p" is not the name of a plugin`},
		{"/bin/sh", both, "", "is not the name of a plugin"},
	} {
		t.Setenv("CNI_PATH", test.in)
		got, err := findPlugin(test.name)
		if got != test.want || (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%q in %q: %q, %v", test.name, test.in, got, err)
		}
	}
	if _, err := delegate(t.Context(), "../p", "ADD", nil); err == nil {
		t.Error("a path was taken for a name")
	}
}

// TestDelegateBusy: a plugin that is being written is tried again, a few times.
func TestDelegateBusy(t *testing.T) {
	defer func(d time.Duration) { busyPause = d }(busyPause)
	busyPause = 20 * time.Millisecond
	path := script(t, "p", "echo fine")
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := delegate(t.Context(), "p", "ADD", nil); !errors.Is(err, unix.ETXTBSY) {
		t.Errorf("busy for ever: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	busyPause = time.Minute
	if _, err := delegate(ctx, "p", "ADD", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no time to wait: %v", err)
	}
	busyPause = time.Second
	time.AfterFunc(100*time.Millisecond, func() { f.Close() })
	if out, err := delegate(t.Context(), "p", "ADD", nil); err != nil || string(out) != "fine\n" {
		t.Errorf("busy for a while: %q, %v", out, err)
	}
}

// TestDelegateHangs: neither a plugin that hangs, nor the child of one that has ended, holds us up.
func TestDelegateHangs(t *testing.T) {
	script(t, "p", "sleep 20")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := delegate(ctx, "p", "ADD", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hung: %v", err)
	}
	script(t, "p", "sleep 20 & echo fine")
	if out, err := delegate(t.Context(), "p", "ADD", nil); err != nil || string(out) != "fine\n" {
		t.Errorf("left a child: %q, %v", out, err)
	}
	if d := time.Since(began); d > 15*time.Second {
		t.Errorf("that took %s", d)
	}
}

func TestDecodeResult(t *testing.T) {
	const ips = `"ips":[{"version":"4","address":"10.244.1.2/24"}]`
	for _, test := range []struct{ name, conf, result, address, says string }{
		{"current", "1.1.0", `{"cniVersion":"1.1.0",` + ips + `}`, "10.244.1.2/24", ""},
		{"older than the configuration", "1.1.0", `{"cniVersion":"0.3.1",` + ips + `}`, "10.244.1.2/24", ""},
		{"of 0.2.0", "0.2.0", `{"cniVersion":"0.2.0","ip4":{"ip":"10.244.1.3/24"}}`, "10.244.1.3/24", ""},
		{"names no version", "0.4.0", `{` + ips + `}`, "10.244.1.2/24", ""},
		{"names an empty version", "1.0.0", `{"cniVersion":"",` + ips + `}`, "10.244.1.2/24", ""},
		{"a version that is none", "1.0.0", `{"cniVersion":7,` + ips + `}`, "10.244.1.2/24", ""},
		{"null", "1.0.0", `null`, "", ""},
		{"no version at all", "", `{` + ips + `}`, "", ""}, // that is 0.1.0, which has no such list
		{"unknown version", "1.0.0", `{"cniVersion":"9.9.9"}`, "", "unsupported CNI result version"},
		{"nothing", "1.0.0", ``, "", "unexpected end of JSON input"},
		{"a list", "1.0.0", `[]`, "", "cannot unmarshal"},
		{"no address", "1.0.0", `{"cniVersion":"1.0.0","ips":[{"address":"x"}]}`, "", "invalid CIDR address"},
	} {
		r, err := decodeResult([]byte(`{"cniVersion":"`+test.conf+`"}`), []byte(test.result))
		got := ""
		if err == nil && len(r.IPs) > 0 {
			got = r.IPs[0].Address.String()
		}
		if got != test.address || (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %q, %v", test.name, got, err)
		}
	}
}
