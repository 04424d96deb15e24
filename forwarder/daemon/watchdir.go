package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/fsnotify/fsnotify"
)

// watchDir tells when something has come into dir, which may come and go itself; where it is to be must be there; and when a file
// in that place, or the place itself, has gone. One that waits to be told of stands for all. It ends with ctx, and
// is of no use once the place itself has gone: look at times, and begin anew. An error: nodes with many containers run out of inotify
// instances (fs.inotify.max_user_instances).
func watchDir(ctx context.Context, dir, file string) (moved <-chan struct{}, err error) {
	dir, file = filepath.Clean(dir), filepath.Clean(file)
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	if err := w.Add(filepath.Dir(dir)); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("watch %s: %w", filepath.Dir(dir), err)
	}
	if err := w.Add(dir); err != nil && !errors.Is(err, fs.ErrNotExist) { // it is added when it comes
		_ = w.Close()
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	told := make(chan struct{}, 1)
	go func() {
		defer w.Close()
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-w.Events:
				switch {
				case (e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename)) && (e.Name == file || e.Name == filepath.Dir(dir)):
				case !e.Has(fsnotify.Create): // a file that is moved here is created, too
					continue
				case e.Name == dir:
					_ = w.Add(dir)
				case filepath.Dir(e.Name) != dir || strings.HasPrefix(filepath.Base(e.Name), "."): // one that is being written
					continue
				}
			case <-w.Errors: // what was lost may have been ours
			}
			select {
			case told <- struct{}{}:
			default:
			}
		}
	}()
	return told, nil
}
