package escrow

import (
	"errors"
	"fmt"
	"time"
)

// The bounds of an escrow, if nothing else is said.
const (
	DefaultMax    = 100
	DefaultMaxAge = 24 * time.Hour
	DefaultRetry  = 15 * time.Second
)

// Config says whether there is an escrow, and its bounds. The zero Config says
// that there is none.
type Config struct {
	// Dir is the spool: a folder on a disk that survives a power cut, mode 0700.
	// It is not made: a wrong path must not begin an empty escrow.
	Dir string `yaml:"dir"`
	// Recipients are who may open the records: age X25519 recipients whose
	// identities are offline. Two custodians are better than one.
	Recipients []string `yaml:"recipients"`
	// Max is how many records may wait at the same time.
	Max int `yaml:"max"`
	// MaxAge is how old the oldest waiting record may be before no further one is
	// taken.
	MaxAge time.Duration `yaml:"max_age"`
	// Retry is how long the inner store is left alone after it was seen to be away.
	Retry time.Duration `yaml:"retry"`

	quick bool // see spool.quick
}

// Enabled reports whether there is an escrow.
func (c Config) Enabled() bool { return c.Dir != "" }

func (c *Config) fill() {
	if c.Max == 0 {
		c.Max = DefaultMax
	}
	if c.MaxAge == 0 {
		c.MaxAge = DefaultMaxAge
	}
	if c.Retry == 0 {
		c.Retry = DefaultRetry
	}
}

// Validate checks the configuration and names the field that is wrong.
func (c Config) Validate() error {
	if !c.Enabled() {
		if len(c.Recipients) > 0 || c.Max != 0 || c.MaxAge != 0 {
			return errors.New("keystore/escrow: dir: name the spool's folder, or leave the other fields out too")
		}
		return nil
	}
	if _, err := parseRecipients(c.Recipients); err != nil {
		return fmt.Errorf("keystore/escrow: recipients: %w", err)
	}
	seen := map[string]bool{}
	for _, r := range c.Recipients {
		if seen[r] {
			return fmt.Errorf("keystore/escrow: recipients: %s is named twice", r)
		}
		seen[r] = true
	}
	switch {
	case c.Max < 0 || c.Max > 100_000:
		return fmt.Errorf("keystore/escrow: max: %d records: give 1 to 100000", c.Max)
	case c.MaxAge < 0:
		return fmt.Errorf("keystore/escrow: max_age: %s is negative", c.MaxAge)
	case c.Retry < 0:
		return fmt.Errorf("keystore/escrow: retry: %s is negative", c.Retry)
	}
	return nil
}
