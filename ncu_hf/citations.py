"""Where a method or a metric comes from, for cards and metrics."""

NCU_URL = "https://arxiv.org/abs/2507.03434"
CLIP_URL = "https://arxiv.org/abs/2103.00020"
NCU_BIBTEX = """@misc{han2025unlearning,
  title         = {Unlearning the Noisy Correspondence Makes CLIP More Robust},
  author        = {Haochen Han and Alex Jinpeng Wang and Peijun Ye and Fangming Liu},
  year          = {2025},
  eprint        = {2507.03434},
  archivePrefix = {arXiv},
  primaryClass  = {cs.CV},
  url           = {https://arxiv.org/abs/2507.03434}
}"""
CLIP_BIBTEX = """@inproceedings{radford2021learning,
  title     = {Learning transferable visual models from natural language supervision},
  author    = {Alec Radford and Jong Wook Kim and Chris Hallacy and Aditya Ramesh and Gabriel Goh and
               Sandhini Agarwal and Girish Sastry and Amanda Askell and Pamela Mishkin and Jack Clark and others},
  booktitle = {International conference on machine learning},
  pages     = {8748--8763},
  year      = {2021},
  publisher = {PMLR}
}"""
SOFTCLIP_BIBTEX = """@inproceedings{gao2024softclip,
  title     = {SoftCLIP: Softer Cross-Modal Alignment Makes CLIP Stronger},
  author    = {Yuting Gao and Jinfeng Liu and Zihan Xu and Tong Wu and Enwei Zhang and Ke Li and Jie Yang and
               Wei Liu and Xing Sun},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  volume    = {38},
  pages     = {1860--1868},
  year      = {2024}
}"""
# Authors and title alone: no year or place of publication is claimed.
SDD_BIBTEX = """@misc{liu_selfdrop,
  title  = {Robust Noisy Correspondence Learning via Self-Drop and Dual-Weight},
  author = {Fan Liu and Chenwei Dong and Chuanyi Zhang and Hualiang Zhou and Jun Zhou}
}"""
