package daemon

import (
	"cmp"
	"context"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/control/server"
)

// await holds a request back until the daemon has its pods together.
func (d *Daemon) await(ctx context.Context) error {
	select {
	case <-d.up:
	case <-ctx.Done():
		return control.Errorf(control.NotReady, "the daemon is still starting: try again")
	}
	if ok, why := d.health.running(); !ok {
		return control.Errorf(control.NotReady, "%s", why)
	}
	return nil
}

// begin is how every request about one pod begins: the daemon is up, the pod is ours alone until done is called, and a delete
// that was queued for it has been carried out.
func (d *Daemon) begin(ctx context.Context, k control.PodKey) (done func(), err error) {
	if err := d.await(ctx); err != nil {
		return nil, err
	}
	done, err = d.pods.keys.lock(ctx, k)
	if err != nil {
		return nil, err
	}
	if server.Gone(ctx) {
		// Who asked is gone: a plugin that was killed, whose request came in behind the DEL that followed it.
		done()
		return nil, control.Errorf(control.NotReady, "nobody waits for what was asked about %s any more", k)
	}
	if err := d.finishPending(k); err != nil {
		done()
		return nil, err
	}
	return done, nil
}

func compareKeys(a, b control.PodKey) int {
	return cmp.Or(cmp.Compare(a.Container, b.Container), cmp.Compare(a.Interface, b.Interface))
}

func checkKey(container, iface string) error {
	switch {
	case !containerName.MatchString(container):
		return control.Errorf(control.BadRequest, "container %q is not a container id: letters, digits, dot, dash and underscore, at most 253", container)
	case !validDevice(iface):
		return control.Errorf(control.BadRequest, "interface %q is not a device name: at most %d characters without slash, colon or space", iface, maxDevice)
	}
	return nil
}
