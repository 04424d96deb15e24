// Command penstockctl shows and steers penstockd.
//
//	penstockctl [--socket PATH] status | pods | ipam | ports | peers | routes | fdb | drops | top [-o json]
//	penstockctl trace SRC DST | capture [-w FILE]
//	penstockctl doctor [PEER…] | bench PEER | support-bundle
//	penstockctl reload | loglevel [LEVEL] | attach … | detach … | config check [PATH] | config example | version
//
// Exit status: 0 done, 1 the daemon refused or failed, 2 wrong usage, 3 the daemon cannot be reached or does not answer in time,
// 4 the configuration is not valid or asks for a restart, 5 doctor has warnings only, or a support bundle is not complete, 6 the
// answer is no: the packet of trace would be dropped or not come to the daemon, the daemon is not ready in the time of status --wait. With -o json an error is
// an object as well, on standard error.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-net/penstock/forwarder/control"
)

// Exit statuses, for scripts.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitConfig      = 4
	exitWarnings    = 5
	exitNo          = 6
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// tool is what the commands share.
type tool struct {
	socket  string
	output  string
	timeout time.Duration
	out     io.Writer
	errs    io.Writer // what is not the answer
	began   bool      // a command's own work has begun: errors from before are wrong usage
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	out := &sticky{Writer: stdout}
	t := &tool{out: out, errs: stderr}
	root := t.root()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(stderr)
	mendCobra(root) // after SetOut: its completion commands keep the writer that they find
	t.watch(root)

	err := out.lost(root.ExecuteContext(ctx))
	if err == nil {
		return 0
	}
	t.began = t.began || out.err != nil // help, which is no command's work, was asked for rightly
	return t.fail(err, args)
}

// root is penstockctl with all its commands.
func (t *tool) root() *cobra.Command {
	root := group(&cobra.Command{
		Use:           "penstockctl",
		Short:         "Show and steer penstockd, the Penstock daemon of this node",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       control.Version(),
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if t.output != "table" && t.output != "json" {
				return fmt.Errorf("--output %q is neither table nor json", t.output)
			}
			if t.timeout <= 0 {
				return fmt.Errorf("--timeout %s leaves no time to wait: give a duration above 0, such as 30s", t.timeout)
			}
			return nil
		},
	})
	root.SetFlagErrorFunc(flagError)
	root.Flags().Bool("version", false, "print the version of penstockctl, and end") // before cobra adds one with -v
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.PersistentFlags().StringVar(&t.socket, "socket", control.DefaultSocket, "control socket of the daemon")
	root.PersistentFlags().DurationVar(&t.timeout, "timeout", 30*time.Second, "how long to wait for the daemon")
	root.PersistentFlags().StringVarP(&t.output, "output", "o", "table", "table or json")
	root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	root.AddCommand(t.status(), t.pods(), t.ipam(), t.ports(), t.peers(), t.routes(), t.fdb(), t.drops(), t.top(), t.trace(), t.capture(),
		t.doctor(), t.bench(), t.supportBundle(), t.reload(), t.logLevel(), t.attach(), t.detach(), t.config(), t.cni(), t.version(), t.man(root))
	return root
}

// daemon calls f with a client and the deadline that was asked for.
func (t *tool) daemon(c *cobra.Command, f func(context.Context, *control.Client) error) error {
	ctx, cancel := control.WithTimeout(c.Context(), t.timeout)
	defer cancel()
	return f(ctx, control.New(t.socket))
}

// watch notes when a command's own work begins: cobra has looked at arguments and flags by then.
func (t *tool) watch(c *cobra.Command) {
	for _, sub := range c.Commands() {
		t.watch(sub)
	}
	if work := c.RunE; work != nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			t.began = true
			return work(c, args)
		}
	}
}
