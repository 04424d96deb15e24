// Package podstate keeps the daemon's pods on disk: what a pod is and how far its life has come, one file a pod.
//
//	<state>                                  locked by the daemon that works with it
//	<state>/pods/ps0123456789a.json          a pod, named by control.DeviceName(container, interface)
//	<state>/pods/.new-*                      being written; swept at the next start
//	<state>/pods/damaged/ps0123456789a.json  could not be read; its addresses are kept from being given again
//	<state>/released                         addresses given back in the last minutes, one a line; a hint, never the truth
//
// A file is written beside its place, brought to disk, renamed, and its directory brought to disk: whoever reads finds the old
// or the new content, whole. So the files are the truth, and everything in the daemon's memory is rebuilt from them.
package podstate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
)

// version of the files' format.
const version = 1

// Record is a pod as its file has it.
type Record struct {
	Version   int                `json:"version"`
	BootID    string             `json:"bootID"` // nothing of a pod survives a boot but its file
	Container string             `json:"container"`
	Interface string             `json:"interface"`
	Network   string             `json:"network,omitempty"`
	Owner     string             `json:"owner,omitempty"`
	Netns     string             `json:"netns,omitempty"`
	NetnsID   string             `json:"netnsID,omitempty"`
	Attach    string             `json:"attach"`
	Device    string             `json:"device,omitempty"`
	MAC       string             `json:"mac,omitempty"`
	Addresses []netip.Addr       `json:"addresses"`
	Source    string             `json:"source"` // control.SourceIPAM, …
	MTU       int                `json:"mtu"`
	Bandwidth *control.Bandwidth `json:"bandwidth,omitempty"`
	Phase     string             `json:"phase"` // control.PhaseReserved, PhaseAttached or PhaseDetaching
	Created   time.Time          `json:"created"`
}

// Key is what the pod is known by.
func (r *Record) Key() control.PodKey {
	return control.PodKey{Container: r.Container, Interface: r.Interface}
}

// Name is the pod's file, without .json.
func (r *Record) Name() string { return control.DeviceName(r.Container, r.Interface) }

// decode reads a file strictly: what is not exactly a record as Save writes it is an error.
func decode(name string, b []byte) (*Record, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	r := &Record{}
	if err := d.Decode(r); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the record")
	}
	return r, r.check(name)
}

func (r *Record) check(name string) error {
	switch {
	case r.Version != version:
		return fmt.Errorf("its version is %d, this daemon writes %d", r.Version, version)
	case r.Container == "" || r.Interface == "" || r.Name() != name:
		return fmt.Errorf("it is about %s/%s, whose file is called %s", r.Container, r.Interface, r.Name())
	case r.BootID == "":
		return errors.New("it has no boot id")
	case !slices.Contains([]string{control.AttachVeth, control.AttachTUN, control.AttachRouted}, r.Attach):
		return fmt.Errorf("attach is %q", r.Attach)
	case !slices.Contains([]string{control.PhaseReserved, control.PhaseAttached, control.PhaseDetaching}, r.Phase):
		return fmt.Errorf("phase is %q", r.Phase)
	case !slices.Contains([]string{control.SourceIPAM, control.SourceForeign, control.SourceManual}, r.Source):
		return fmt.Errorf("source is %q", r.Source)
	case len(r.Addresses) == 0:
		return errors.New("it has no address")
	case r.MTU < 68 || r.MTU > 65535:
		return fmt.Errorf("mtu is %d", r.MTU)
	}
	for i, a := range r.Addresses {
		if !a.IsValid() || a.Zone() != "" || a.Is4In6() || slices.Contains(r.Addresses[:i], a) {
			return fmt.Errorf("address %q is not a plain address, or there twice", a)
		}
	}
	return nil
}
