"""What several tests share: strategies, fakes and small networks."""
