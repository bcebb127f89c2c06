//go:build race

package provision_test

// raceFactor thins the sweeps out where everything takes several times as long.
const raceFactor = 3
