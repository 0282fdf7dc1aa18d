// Command importer imports outbox alone.
package main

import "github.com/oncebox/oncebox/outbox"

func main() { _, _ = outbox.NewWriter(outbox.WriterConfig{Source: "importer"}) }
