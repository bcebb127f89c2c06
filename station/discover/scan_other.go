//go:build !linux

package discover

// Scan finds nothing here.
func Scan(Roots) ([]Port, error) { return nil, ErrUnsupported }

// Lookup finds nothing here.
func Lookup(Roots, string) (Port, error) { return Port{}, ErrUnsupported }
