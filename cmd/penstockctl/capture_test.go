package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/control/capture"
)

var capturedIP = []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 244, 1, 5, 10, 244, 2, 5, 0, 1, 0, 2, 0, 8, 0, 0}

// threeFrames are given once.
type threeFrames struct{ given atomic.Bool }

func (s *threeFrames) Read(fn func(*capture.Frame)) int {
	if s.given.Swap(true) {
		return 0
	}
	eth := append(append(make([]byte, 12), 8, 0), capturedIP...)
	for _, c := range []capture.Frame{
		{Time: time.Unix(100, 7), Stage: "from-pod", Pod: "c1/eth0", Ethernet: true, Length: len(eth), Data: eth},
		{Time: time.Unix(100, 8), Stage: "dropped", Reason: "spoofed", Pod: "c1/eth0", Length: 28, Data: capturedIP},
		{Time: time.Unix(100, 9), Stage: "to-peer", Peer: "node-b", Length: 60000, Segment: 1400, Data: capturedIP},
	} {
		fn(&c)
	}
	return 3
}
func (s *threeFrames) Lost() uint64 { return 2 }
func (s *threeFrames) Close()       {}

func (f *fake) Reasons(context.Context) ([]control.Drop, error) {
	return []control.Drop{{Reason: "spoofed", Meaning: "a pod lies", Remedy: "look at it"}, {Reason: "ttl_expired", Meaning: "it ran out"}}, f.err
}
func (f *fake) Capture(_ context.Context, r capture.Request) (capture.Source, error) {
	if r.Pod == "nobody" {
		return nil, control.Errorf(control.NotFound, "no such pod")
	}
	return &threeFrames{}, f.err
}

func TestCaptureLines(t *testing.T) {
	socket := serve(t, &fake{})
	status, out, errs := ctl(t, "--socket", socket, "capture", "-c", "3")
	for _, want := range []string{"from-pod c1/eth0: 10.244.1.5 → 10.244.2.5 udp 1 → 2 ttl 64, 42 bytes\n", "dropped spoofed c1/eth0: ", "superframe of 1400 byte segments\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if status != 0 || !strings.Contains(errs, "3 frames captured") {
		t.Errorf("%d %s", status, errs)
	}
	status, out, errs = ctl(t, "--socket", socket, "-o", "json", "capture", "-c", "2")
	if status != 0 || strings.Count(out, "\n") != 2 || !strings.Contains(out, `"reason":"spoofed"`) || !strings.HasPrefix(errs, `{"captured":2,"lost":`) {
		t.Errorf("%d %s %s", status, out, errs)
	}
	if status, _, errs := ctl(t, "--socket", socket, "capture", "--pod", "nobody"); status != exitFailed || !strings.Contains(errs, "no such pod") {
		t.Errorf("%d %s", status, errs)
	}
	for _, wrong := range [][2]string{{"--port", "65536"}, {"--port", "-1"}, {"--proto", "quic"}, {"--proto", ""}, {"--port", "http"}} {
		if status, _, errs := ctl(t, "--socket", socket, "capture", wrong[0]+"="+wrong[1]); status != exitUsage || !strings.Contains(errs, wrong[0]) || !strings.Contains(errs, wrong[1]) {
			t.Errorf("%v: %d %s", wrong, status, errs)
		}
	}
	if status, _, errs := ctl(t, "--socket", socket, "capture", "--proto", "icmp", "--port", "53"); status != exitUsage || !strings.Contains(errs, "no ports") {
		t.Errorf("%d %s", status, errs)
	}
	if status, _, _ := ctl(t, "--socket", socket, "capture", "-c", "x"); status != exitUsage {
		t.Errorf("%d", status)
	}
}

// TestCaptureFile: the file is whole though the user ends the capture, and a reader finds stage, reason and limits in it.
func TestCaptureFile(t *testing.T) {
	socket := serve(t, &fake{})
	path := filepath.Join(t.TempDir(), "x.pcapng")
	ctx, stop := context.WithCancel(t.Context())
	time.AfterFunc(300*time.Millisecond, stop)
	var out, errs bytes.Buffer
	if status := run(ctx, []string{"--socket", socket, "capture", "-s", "99", "--pod", "c1/eth0", "--proto", "udp", "--port", "1", "-w", path}, &out, &errs); status != 0 {
		t.Fatalf("%d %s", status, errs.String())
	}
	if !strings.Contains(errs.String(), "3 frames captured, 2 more matched and were lost") || out.Len() > 0 {
		t.Errorf("%q %q", errs.String(), out.String())
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, err := pcapgo.NewNgReader(file, pcapgo.DefaultNgReaderOptions) // which reads one type of link only, as libpcap does
	if err != nil {
		t.Fatal(err)
	}
	if s := r.SectionInfo(); s.Comment != "pod c1/eth0, protocol udp, port 1" || !strings.HasPrefix(s.Application, "penstockctl ") {
		t.Errorf("%+v", s)
	}
	for i, want := range []pcapgo.NgInterface{
		{Name: "from-pod c1/eth0", Description: "pod c1/eth0", LinkType: layers.LinkTypeEthernet},
		{Name: "dropped:spoofed c1/eth0", Description: "pod c1/eth0, Ethernet header made up", Comment: "a pod lies; what to do: look at it", LinkType: layers.LinkTypeEthernet},
		{Name: "to-peer node-b", Description: "peer node-b, Ethernet header made up", LinkType: layers.LinkTypeEthernet},
	} {
		data, ci, err := r.ReadPacketData()
		if err != nil {
			t.Fatal(err)
		}
		on, err := r.Interface(ci.InterfaceIndex)
		if err != nil {
			t.Fatal(err)
		}
		if on.Name != want.Name || on.Description != want.Description || on.Comment != want.Comment || on.LinkType != want.LinkType || on.SnapLength != 99+14 {
			t.Errorf("%d: on %+v", i, on)
		}
		if ci.Timestamp.UnixNano() != 100e9+7+int64(i) || !bytes.HasSuffix(data, capturedIP) {
			t.Errorf("%d: %+v % x", i, ci, data)
		}
		if len(data) != 14+len(capturedIP) || data[12] != 8 || data[13] != 0 {
			t.Errorf("%d: its Ethernet header: % x", i, data)
		}
		if i == 2 && ci.Length != 14+60000 {
			t.Errorf("a superframe of %d bytes", ci.Length)
		}
	}
	if _, _, err := r.ReadPacketData(); !errors.Is(err, io.EOF) {
		t.Errorf("behind the last packet: %v", err)
	}
	// The same to standard output.
	status, piped, _ := ctl(t, "--socket", socket, "capture", "-c", "3", "-w", "-")
	if _, err := pcapgo.NewNgReader(strings.NewReader(piped), pcapgo.NgReaderOptions{WantMixedLinkType: true}); status != 0 || err != nil {
		t.Errorf("%d %v", status, err)
	}
}

// TestCaptureIsPrivate: what pods say to each other is in a file that nobody else may read, also where one stood that everybody could.
func TestCaptureIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.pcapng")
	socket := serve(t, &fake{})
	for _, was := range []os.FileMode{0, 0o644} {
		if was != 0 {
			if err := os.Chmod(path, was); err != nil {
				t.Fatal(err)
			}
		}
		if status, _, errs := ctl(t, "--socket", socket, "capture", "-c", "3", "-w", path); status != 0 {
			t.Fatal(errs)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 || fi.Size() == 0 {
			t.Errorf("%v before: %v %v", was, fi.Mode(), err)
		}
	}
	if status, _, errs := ctl(t, "--socket", socket, "capture", "-c", "3", "-w", "/dev/null"); status != 0 {
		t.Error(errs)
	}
	if fi, err := os.Stat("/dev/null"); err != nil || fi.Mode().Perm() != 0o666 {
		t.Errorf("the mode of a device was changed: %v %v", fi.Mode(), err)
	}
}
