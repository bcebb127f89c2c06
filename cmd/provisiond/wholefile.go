package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// wholeFile is a file that appears whole or not at all.
type wholeFile struct {
	*os.File
	path string
}

// newWholeFile makes the file under another name, beside its own.
func newWholeFile(path string, mode fs.FileMode) (*wholeFile, error) {
	f, err := os.OpenFile(fmt.Sprintf("%s.%d.tmp", path, os.Getpid()), os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return nil, err
	}
	return &wholeFile{f, path}, nil
}

// finish makes what was written durable, still under the other name.
func (o *wholeFile) finish() error { return errors.Join(o.Sync(), o.Close()) }

// show gives the file its name, in place of one that is there.
func (o *wholeFile) show() error { return os.Rename(o.Name(), o.path) }

// drop removes the file, unless it has its name already.
func (o *wholeFile) drop() {
	_ = o.Close()
	_ = os.Remove(o.Name())
}
