package lab

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"
)

// Flood sends frames out of a device, in turn and as fast as one thread can, until ctx ends. It returns how many the kernel took.
func (h *Host) Flood(ctx context.Context, device string, frames [][]byte) (sent uint64, err error) {
	f, err := h.packetSocket(device, false)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for i := 0; ; i++ {
		if i%64 == 0 && ctx.Err() != nil {
			return sent, nil
		}
		switch _, err := f.Write(frames[i%len(frames)]); {
		case err == nil:
			sent++
		case !errors.Is(err, unix.ENOBUFS):
			return sent, err
		}
	}
}
