package provision_test

import (
	"fmt"
	"testing"

	"github.com/provisiond/provisiond/efuse/table"
	"github.com/provisiond/provisiond/internal/espsim"
)

// A board with a key in any block is no virgin board, also when the block that
// this job needs is free and no fuse tells what the other key is for.
func TestRefusesForeignKeyInAnyBlock(t *testing.T) {
	for _, name := range twoChips {
		tab, err := table.For(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, blk := range tab.Blocks() {
			if !blk.Key {
				continue
			}
			inBubble(t, fmt.Sprintf("%s/%s", name, blk.Name), func(t *testing.T) {
				b := newMemoryBench(t)
				c := b.board(espsim.Options{Model: model(t, name)})
				if err := c.SetFuse(blk.Index, 0, 0xABCD); err != nil {
					t.Fatal(err)
				}
				b.wantRefused(c, sampleJob(t, name, "release"), blk.Name)
			})
		}
	}
}
