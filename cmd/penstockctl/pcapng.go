package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/control/capture"
)

// pcapng writes frames to a file that Wireshark reads. Each stage of each pod and peer, and each reason, is an interface; it is
// announced when its first frame comes. All are of the type Ethernet, as libpcap reads a file of one type only: frames that had no Ethernet
// header have one that is made up, of zeros and their protocol, and their interface says so.
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
	p := &pcapng{interfaces: map[ngKey]int{}, reasons: reasons}
	if r.Snap > 0 {
		p.snap = uint32(r.Snap + encap.EthernetLen) // libpcap takes no longer frame
	}
	var err error
	// A section needs an interface before anything comes: the node itself.
	p.NgWriter, err = pcapgo.NewNgWriterInterface(w, p.describe(ngKey{stage: "penstock", ethernet: true}), pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{
		Hardware: runtime.GOARCH, OS: runtime.GOOS, Application: "penstockctl " + control.Version(), Comment: strings.Join(filters, ", "),
	}})
	if err != nil {
		return nil, fmt.Errorf("the capture cannot be written: %w", err)
	}
	return p, p.Flush()
}

func (p *pcapng) describe(k ngKey) pcapgo.NgInterface {
	i := pcapgo.NgInterface{Name: k.stage, LinkType: layers.LinkTypeEthernet, SnapLength: p.snap, TimestampResolution: 9, OS: runtime.GOOS}
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
	if !k.ethernet {
		whose = append(whose, "Ethernet header made up")
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
	data, length := c.Data, c.Length
	if !c.Ethernet {
		data, length = append(madeUp(data), data...), length+encap.EthernetLen
	}
	return p.WritePacket(gopacket.CaptureInfo{Timestamp: c.Time, CaptureLength: len(data), Length: length, InterfaceIndex: i}, data)
}

// madeUp is an Ethernet header for a frame that had none.
func madeUp(data []byte) []byte {
	kind := uint16(0x88b5) // what it is nobody knows: IEEE's type for experiments
	if len(data) > 0 {
		switch data[0] >> 4 {
		case 4:
			kind = uint16(layers.EthernetTypeIPv4)
		case 6:
			kind = uint16(layers.EthernetTypeIPv6)
		}
	}
	return binary.BigEndian.AppendUint16(make([]byte, 12, encap.EthernetLen+len(data)), kind)
}

func (p *pcapng) flush() error { return p.Flush() }
