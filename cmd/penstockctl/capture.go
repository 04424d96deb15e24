package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/control/capture"
)

// captureFlags is what a capture is asked for.
type captureFlags struct {
	capture.Request
	count int
	file  string
}

func (t *tool) capture() *cobra.Command {
	f := &captureFlags{}
	protocols := strings.Join(capture.Protocols[:], ", ")
	c := &cobra.Command{
		Use:   "capture [--pod POD] [--peer PEER] [--proto PROTOCOL] [--port PORT] [--reason REASON]",
		Short: "Show frames where they come in, leave and are dropped, or write them as pcapng",
		Long: `Show frames where they come in, leave and are dropped, or write them as pcapng.

A frame is shown at each stage of its way: from-pod, from-host, from-peer (after its encapsulation is taken off), to-pod,
to-host, to-peer (before it is encapsulated), and dropped, with the reason. Filters must all hold. --pod takes
container/interface (the first 8 characters of the container do), the owner (namespace/name), the device or an address;
--peer a name or an underlay address; --proto ` + protocols + ` or a number; --port the source or destination of TCP,
UDP or SCTP (of a packet in fragments the first has it; an ICMP error has none); --reason a drop reason (penstockctl
drops --all lists them), and then only these drops are shown. --proto and --port are about the pods' packets, not about
what carries them. In a pcapng file each stage, pod, peer and reason is an interface of its own (frame.interface_name), whose comment explains a drop.
tcpdump and tshark read it; frames that have no Ethernet header, as those of tun pods, get one of zeros there.
Superframes are one long packet, and checksums may be wrong where the device would have filled them in.

It ends after --count frames, or by Ctrl-C, which leaves a whole file. What the daemon could not pass on in time is counted and
told at the end; forwarding never waits for a capture.`,
		Example: "  penstockctl capture --pod default/web-0 -w web.pcapng\n  penstockctl capture --pod default/web-0 --proto udp --port 53\n  penstockctl capture --reason spoofed -w - | tshark -r -",
		Args:    takes(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if f.Protocol == "" && c.Flags().Changed("proto") {
				return misused("--proto is empty: give %s or a number", protocols)
			}
			return t.runCapture(c.Context(), f)
		},
	}
	c.Flags().StringVar(&f.Pod, "pod", "", "only frames of this pod: container/interface, owner, device or address")
	c.Flags().StringVar(&f.Peer, "peer", "", "only frames to or from this peer: name or address")
	c.Flags().StringVar(&f.Protocol, "proto", "", "only this protocol: "+protocols+" or a number")
	c.Flags().IntVar(&f.Port, "port", 0, "only from or to this port of TCP, UDP or SCTP (0: all)")
	c.Flags().StringVar(&f.Reason, "reason", "", "only what is dropped for this reason")
	c.Flags().IntVarP(&f.count, "count", "c", 0, "end after this many frames (0: by Ctrl-C)")
	c.Flags().IntVarP(&f.Snap, "snaplen", "s", 0, "bytes of each frame (0: all)")
	c.Flags().StringVarP(&f.file, "write", "w", "", "write pcapng to this file (mode 0600), or to standard output (-)")
	c.RegisterFlagCompletionFunc("pod", t.completeOne(func(ctx context.Context, client *control.Client) (names []string, err error) {
		ports, err := client.Ports(ctx)
		for _, p := range ports {
			names = append(names, p.Container+"/"+p.Interface)
		}
		return names, err
	}))
	c.RegisterFlagCompletionFunc("peer", t.completeOne(func(ctx context.Context, client *control.Client) (names []string, err error) {
		peers, err := client.Peers(ctx)
		for _, p := range peers {
			names = append(names, p.Name)
		}
		return names, err
	}))
	c.RegisterFlagCompletionFunc("proto", cobra.FixedCompletions(capture.Protocols[:], cobra.ShellCompDirectiveNoFileComp))
	c.RegisterFlagCompletionFunc("reason", t.completeOne(func(ctx context.Context, client *control.Client) (names []string, err error) {
		reasons, err := client.Reasons(ctx)
		for _, r := range reasons {
			names = append(names, r.Reason)
		}
		return names, err
	}))
	return c
}

// completeOne offers what the daemon knows as values of a flag.
func (t *tool) completeOne(get func(context.Context, *control.Client) ([]string, error)) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(c *cobra.Command, _ []string, _ string) (names []string, _ cobra.ShellCompDirective) {
		t.daemon(c, func(ctx context.Context, client *control.Client) (err error) {
			names, err = get(ctx, client)
			return err
		})
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// sink takes captured frames.
type sink interface {
	write(*capture.Frame) error
	flush() error
}

func (t *tool) runCapture(ctx context.Context, f *captureFlags) error {
	switch {
	case f.count < 0:
		return misused("--count %d is negative: give how many frames, or 0 for no end", f.count)
	case f.Snap < 0:
		return misused("--snaplen %d is negative: give how many bytes, or 0 for all", f.Snap)
	case f.Port < 0 || f.Port > 65535:
		return misused("--port %d is no port: give one from 1 to 65535, or 0 for all", f.Port)
	}
	if f.Protocol != "" {
		n, err := capture.ParseProtocol(f.Protocol)
		if err != nil {
			return misused("--proto: %v", err)
		}
		if f.Port != 0 && n != encap.ProtoTCP && n != encap.ProtoUDP && n != encap.ProtoSCTP {
			return misused("--port %d matches nothing with --proto %s, which has no ports: leave one of them out", f.Port, f.Protocol)
		}
	}
	client := control.New(t.socket)
	reasons := map[string]control.Drop{}
	if f.file != "" {
		q, cancel := control.WithTimeout(ctx, t.timeout)
		list, err := client.Reasons(q)
		cancel()
		if err != nil {
			return err
		}
		for _, r := range list {
			reasons[r.Reason] = r
		}
	}
	in, err := capture.Open(ctx, client, f.Request)
	if err != nil {
		return err
	}
	defer in.Close()
	var to sink
	switch {
	case f.file == "-":
		to, err = newPcapng(t.out, f.Request, reasons)
	case f.file != "":
		file, e := createPrivate(f.file)
		if e != nil {
			return fmt.Errorf("the capture cannot be written: %w", e)
		}
		defer file.Close()
		to, err = newPcapng(file, f.Request, reasons)
	case t.output == "json":
		to = jsonLines{json.NewEncoder(t.out)}
	default:
		to = newLines(t.out)
	}
	if err != nil {
		return err
	}
	n, err := pump(ctx, in, to, f.count)
	lost := in.Lost()
	if t.output == "json" {
		jsonLine(t.errs, capturedAll{n, lost})
		return err
	}
	fmt.Fprintf(t.errs, "%s captured", counted(n, "frame"))
	if lost > 0 {
		fmt.Fprintf(t.errs, ", %d more matched and were lost: narrow the filter, or shorten frames with -s", lost)
	}
	fmt.Fprintln(t.errs)
	return err
}

// createPrivate is os.Create for what pods say to each other: of a regular file, new or not, only the owner may read it.
func createPrivate(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() && info.Mode().Perm() != 0o600 {
		err = f.Chmod(0o600)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// pump moves frames until the count, the user or the daemon ends it. That the user ends it is no error.
func pump(ctx context.Context, in *capture.Reader, to sink, count int) (n int, err error) {
	for count == 0 || n < count {
		c, err := in.Next()
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("penstockd ended the capture without saying why; has it died?")
			}
			return n, errors.Join(err, to.flush())
		}
		if err := to.write(c); err != nil {
			return n, fmt.Errorf("the capture cannot be written: %w", err)
		}
		n++
		if in.Waiting() {
			if err := to.flush(); err != nil {
				return n, fmt.Errorf("the capture cannot be written: %w", err)
			}
		}
	}
	if err := to.flush(); err != nil {
		return n, fmt.Errorf("the capture cannot be written: %w", err)
	}
	return n, nil
}

// lines prints a line for each frame.
type lines struct{ *bufio.Writer }

func newLines(w io.Writer) lines { return lines{bufio.NewWriter(w)} }

func (l lines) write(c *capture.Frame) error {
	_, err := fmt.Fprintf(l, "%s %s\n", c.Time.Format("15:04:05.000000"), c)
	return err
}

func (l lines) flush() error { return l.Flush() }

// capturedLine is a captured frame as JSON.
type capturedLine struct {
	Time     time.Time `json:"time"`
	Stage    string    `json:"stage"`
	Reason   string    `json:"reason,omitempty"`
	Pod      string    `json:"pod,omitempty"`
	Peer     string    `json:"peer,omitempty"`
	Worker   int       `json:"worker"`
	Ethernet bool      `json:"ethernet,omitempty"`
	Outer    bool      `json:"outer,omitempty"`
	Length   int       `json:"length"`
	Segment  int       `json:"segment,omitempty"`
	Data     []byte    `json:"data"`
}

// jsonLines prints an object for each frame.
type jsonLines struct{ *json.Encoder }

func (l jsonLines) write(c *capture.Frame) error {
	return l.Encode(capturedLine{c.Time.UTC(), c.Stage, c.Reason, c.Pod, c.Peer, c.Worker, c.Ethernet, c.Outer, c.Length, c.Segment, c.Data})
}

func (l jsonLines) flush() error { return nil }
