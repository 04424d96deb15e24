package daemon

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-net/penstock/forwarder/config"
	"github.com/penstock-net/penstock/forwarder/control"
)

// TestConfigHangs: a file whose read hangs rejects the reload, and holds up nothing else: not other changes, nor the next reload when the
// disk is back, nor SIGTERM.
func TestConfigHangs(t *testing.T) {
	r := run(t, newFake(), "")
	disk, reading := make(chan struct{}), make(chan struct{}, 8)
	r.reader.patience = 50 * time.Millisecond
	r.reader.load = func(path string) (*config.Config, error) {
		reading <- struct{}{}
		<-disk
		return config.LoadRegular(path)
	}
	for range 2 {
		if _, err := r.client.Reload(t.Context()); control.CodeOf(err) != control.InvalidConfig || !strings.Contains(err.Error(), "cannot be read within") {
			t.Errorf("%v", err)
		}
	}
	if len(reading) != 1 {
		t.Errorf("%d reads hang, want 1", len(reading))
	}
	disk <- struct{}{}
	r.reader.patience = time.Hour
	rewrite(t, r.path, peerB)
	go func() { disk <- struct{}{} }()
	if got, err := r.client.Reload(t.Context()); err != nil || len(got.Changed) != 1 {
		t.Errorf("when the disk is back: %+v, %v", got, err)
	}
	<-reading
	<-reading
	r.hangup <- syscall.SIGHUP
	<-reading
	if !r.change.TryLock() {
		t.Error("while the file is read nothing else can change")
	} else {
		r.change.Unlock()
	}
	began := time.Now()
	r.stop()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("stopping took %v", took)
	}
	close(disk)
}

// TestConfigIsNoFile: what is put into the configuration file's place and is none is refused.
func TestConfigIsNoFile(t *testing.T) {
	r := run(t, newFake(), "")
	os.Remove(r.path)
	if err := syscall.Mkfifo(r.path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.Reload(t.Context()); control.CodeOf(err) != control.InvalidConfig || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("%v", err)
	}
}
