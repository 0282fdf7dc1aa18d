package main

import (
	"testing"

	"github.com/oncebox/oncebox/internal/stacktest"
)

func TestMain(m *testing.M) { stacktest.Main(m) }
