package main

import (
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/control/capture"
)

// pcapng writes frames to a file that Wireshark reads. Each stage of each pod and peer, and each reason, is an interface; it is
// announced when its first frame comes.
type pcapng struct {
	*pcapgo.NgWriter
	snap       uint32
	interfaces map[ngKey]int
	reasons    map[string]control.Drop
}

type ngKey struct {
	stage, reason, pod, peer string
	ethernet                 bool
}

func newPcapng(w io.Writer, r capture.Request, reasons map[string]control.Drop) (*pcapng, error) {
	port := ""
	if r.Port != 0 {
		port = strconv.Itoa(r.Port)
	}
	var filters []string
	for _, f := range [][2]string{{"pod", r.Pod}, {"peer", r.Peer}, {"protocol", r.Protocol}, {"port", port}, {"reason", r.Reason}} {
		if f[1] != "" {
			filters = append(filters, f[0]+" "+f[1])
		}
	}
	p := &pcapng{snap: uint32(r.Snap), interfaces: map[ngKey]int{}, reasons: reasons}
	var err error
	// A section needs an interface before anything comes: the node itself.
	p.NgWriter, err = pcapgo.NewNgWriterInterface(w, p.describe(ngKey{stage: "penstock"}), pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{
		Hardware: runtime.GOARCH, OS: runtime.GOOS, Application: "penstockctl " + control.Version(), Comment: strings.Join(filters, ", "),
	}})
	if err != nil {
		return nil, fmt.Errorf("the capture cannot be written: %w", err)
	}
	return p, p.Flush()
}

func (p *pcapng) describe(k ngKey) pcapgo.NgInterface {
	i := pcapgo.NgInterface{Name: k.stage, LinkType: layers.LinkTypeRaw, SnapLength: p.snap, TimestampResolution: 9, OS: runtime.GOOS}
	if k.ethernet {
		i.LinkType = layers.LinkTypeEthernet
	}
	if k.reason != "" {
		i.Name += ":" + k.reason
		if r := p.reasons[k.reason]; r.Meaning != "" {
			i.Comment = r.Meaning
			if r.Remedy != "" {
				i.Comment += "; what to do: " + r.Remedy
			}
		}
	}
	var whose []string
	if k.pod != "" {
		whose = append(whose, "pod "+k.pod)
	}
	if k.peer != "" {
		whose = append(whose, "peer "+k.peer)
	}
	i.Description = strings.Join(whose, ", ")
	for _, s := range []string{k.pod, k.peer} {
		if s != "" {
			i.Name += " " + s
		}
	}
	return i
}

func (p *pcapng) write(c *capture.Frame) error {
	k := ngKey{c.Stage, c.Reason, c.Pod, c.Peer, c.Ethernet}
	i, ok := p.interfaces[k]
	if !ok {
		var err error
		if i, err = p.AddInterface(p.describe(k)); err != nil {
			return err
		}
		p.interfaces[k] = i
	}
	return p.WritePacket(gopacket.CaptureInfo{Timestamp: c.Time, CaptureLength: len(c.Data), Length: c.Length, InterfaceIndex: i}, c.Data)
}

func (p *pcapng) flush() error { return p.Flush() }
