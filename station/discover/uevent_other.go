//go:build !linux

package discover

func openUevents() (eventSource, error) { return nil, ErrUnsupported }
