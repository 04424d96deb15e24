package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
)

func TestClaim(t *testing.T) {
	name := fmt.Sprintf("@penstockd-test-%d", os.Getpid())
	release, err := claim(name)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // the holder answers nobody, so that looking at it must not wait
		if _, err := claim(name); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("another penstockd is running in this network namespace as process %d", os.Getpid())) {
			if !strings.Contains(fmt.Sprint(err), "another penstockd is running in this network namespace") {
				t.Errorf("a second claim: %v", err)
			}
		}
	}
	if err := release(); err != nil {
		t.Error(err)
	}
	release, err = claim(name)
	if err != nil {
		t.Fatalf("after its release: %v", err)
	}
	release()
}

// TestClaimed: a daemon that is not the only one touches nothing, and neither does a cleanup.
func TestClaimed(t *testing.T) {
	f := newFake()
	f.failing("claim", errors.New("another penstockd"))
	path := file(t, "")
	d, _ := newDaemon(f, Options{Config: path, Log: io.Discard})
	if err := d.run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "another penstockd") {
		t.Errorf("run: %v", err)
	}
	if err := cleanup(t.Context(), f, Options{Config: path, Log: io.Discard}); err == nil || !strings.Contains(err.Error(), "another penstockd") {
		t.Errorf("cleanup: %v", err)
	}
	for _, did := range f.deeds() {
		for _, no := range []string{"prepare", "forwarder", "cleanup", "rmlink"} {
			if strings.HasPrefix(did, no) {
				t.Errorf("it did %q", did)
			}
		}
	}
}
