"""Public scripts that train well: tutorials, reference implementations and textbook algorithms."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.external.program import External, healthy

_UPDATES = {
    "examples/mnist": 60, "examples/siamese": 25, "examples/dcgan": 100, "yunjey/deep_residual_network": 15,
    "yunjey/language_model": 12, "zero-to-all/09_2_softmax_mnist": 500, "nlp-tutorial/Word2Vec": 1500,
    "nlp-tutorial/BERT": 8, "PyTorch-GAN/dcgan": 40, "PyTorch-GAN/infogan": 40, "PyTorch-GAN/acgan": 40,
    "PyTorch-GAN/relativistic_gan": 40, "PyTorch-GAN/sgan": 40, "nlp-tutorial/Transformer": 12,
}  # fmt: skip
"""Program → updates: fewer where one takes long, more where a run learns slowly."""

_OLD_TORCH = "It was written for an early torch: it raises at its first update."
_NOT_RUN = {
    "morvan/401_CNN": "It passes an argument that scikit-learn has dropped: it raises at its first update.",
    "morvan/406_conditional_GAN": _OLD_TORCH,
    "PyTorch-GAN/softmax_gan": _OLD_TORCH,
    "PyTorch-GAN/bgan": "A name in it is not defined: it raises.",
    "PyTorch-GAN/dragan": "A name in it is not defined: it raises.",
    "zero-to-all/11_1_toy_inception_mnist": _OLD_TORCH,
    "zero-to-all/13_2_rnn_classification": _OLD_TORCH,
    "examples/regression": "It updates its weights by itself, without an optimizer.",
}

_GAMES = ("examples/dcgan", "yunjey/generative_adversarial_network", "morvan/406_GAN", "morvan/406_conditional_GAN")
"""Two networks against each other, among the tutorials: their losses measure no progress."""

LEARNS = healthy("The repository shows it as an example that learns.")


def _all() -> list[External]:
    made = [*_reinforcement(), *_pytorch_examples(), *_tutorials(), *_language(), *_generative()]
    made = [replace(one, suite="healthy, generative") if one.name in _GAMES else one for one in made]
    made = [replace(one, updates=_UPDATES.get(one.name, one.updates)) for one in made]
    return [replace(one, not_run=_NOT_RUN.get(one.name, one.not_run)) for one in made]


def _reinforcement() -> list[External]:
    rl = "healthy, reinforcement learning"
    minimal = ("REINFORCE", "actor_critic", "dqn", "ppo", "ppo-lstm", "ppo-continuous", "sac", "ddpg", "vtrace", "acer")
    made = [
        External(f"minimalRL/{name}", rl, "seungeunrho/minimalRL", f"{name}.py", LEARNS, updates=600, adapters=("gym",))
        for name in minimal
    ]
    processes = "It trains in processes that it starts itself, by multiprocessing; gradwatch run watches one process."
    made += [
        External(f"minimalRL/{name}", rl, "seungeunrho/minimalRL", f"{name}.py", LEARNS, not_run=processes)
        for name in ("a2c", "a3c")
    ]
    clean = {
        "dqn": ("--learning-starts", "500", "--train-frequency", "4", "--buffer-size", "5000"),
        "c51": ("--learning-starts", "500", "--train-frequency", "4", "--buffer-size", "5000"),
        "ppo": (),
        "pqn": (),
        "ppo_continuous_action": ("--env-id", "Pendulum-v1"),
        "rpo_continuous_action": ("--env-id", "Pendulum-v1"),
        "ddpg_continuous_action": ("--env-id", "Pendulum-v1", "--learning-starts", "500", "--buffer-size", "5000"),
        "td3_continuous_action": ("--env-id", "Pendulum-v1", "--learning-starts", "500", "--buffer-size", "5000"),
        "sac_continuous_action": ("--env-id", "Pendulum-v1", "--learning-starts", "500", "--buffer-size", "5000"),
    }
    made += [
        External(
            f"cleanrl/{name}", rl, "vwxyzjn/cleanrl", f"cleanrl/{name}.py", LEARNS, arguments, 600, ("gym",), ("",)
        )
        for name, arguments in clean.items()
    ]
    baselines = {"PPO": "CartPole-v1", "A2C": "CartPole-v1", "DQN": "CartPole-v1", "SAC": "Pendulum-v1",
                 "TD3": "Pendulum-v1", "DDPG": "Pendulum-v1"}  # fmt: skip
    made += [
        External(f"stable-baselines3/{name}", rl, "DLR-RM/stable-baselines3", "baselines.py", LEARNS,
                 (name, environment, "8000"), 600)
        for name, environment in baselines.items()
    ]  # fmt: skip
    made += [
        External(f"examples/{name}", rl, "pytorch/examples", f"reinforcement_learning/{name}.py", LEARNS, (), 150)
        for name in ("reinforce", "actor_critic")
    ]
    return made


def _pytorch_examples() -> list[External]:
    suite, images = "healthy, supervised", ("images",)
    once = ("--epochs", "4")
    text = {f"data/wikitext-2/{part}.txt": f"text:{size}" for part, size in
            (("train", 200_000), ("valid", 5_000), ("test", 5_000))}  # fmt: skip
    words = ("--epochs", "1", "--emsize", "64", "--nhid", "64")
    found = [
        ("mnist", "mnist/main.py", once, images, {}),
        ("mnist_rnn", "mnist_rnn/main.py", once, images, {}),
        ("forward_forward", "mnist_forward_forward/main.py", ("--epochs", "100", "--train_size", "500"), images, {}),
        ("vae", "vae/main.py", ("--epochs", "8"), images, {}),
        ("siamese", "siamese_network/main.py", ("--epochs", "1", "--batch-size", "16"), images, {}),
        ("regression", "regression/main.py", (), (), {}),
        ("dcgan", "dcgan/main.py",
         ("--dataset", "mnist", "--dataroot", ".", "--workers", "0", "--batchSize", "16", "--ngf", "16", "--ndf", "16"),
         images, {}),
        ("words_lstm", "word_language_model/main.py", (*words, "--model", "LSTM", "--use-optimizer", "--lr", "0.001"),
         (), text),
        ("words_gru", "word_language_model/main.py", (*words, "--model", "GRU", "--use-optimizer", "--lr", "0.001"),
         (), text),
        ("words_transformer", "word_language_model/main.py",
         (*words, "--model", "Transformer", "--use-optimizer", "--lr", "0.001"), (), text),
    ]  # fmt: skip
    return [
        External(f"examples/{name}", suite, "pytorch/examples", path, LEARNS, arguments, 200, adapters,
                 (), feed)
        for name, path, arguments, adapters, feed in found
    ]  # fmt: skip


def _tutorials() -> list[External]:
    suite, images = "healthy, supervised", ("images",)
    made = []
    for path in ("01-basics/linear_regression", "01-basics/logistic_regression", "01-basics/feedforward_neural_network",
                 "02-intermediate/convolutional_neural_network", "02-intermediate/recurrent_neural_network",
                 "02-intermediate/bidirectional_recurrent_neural_network", "02-intermediate/deep_residual_network",
                 "03-advanced/variational_autoencoder", "03-advanced/generative_adversarial_network"):  # fmt: skip
        made.append(
            External(f"yunjey/{path.partition('/')[2]}", suite, "yunjey/pytorch-tutorial",
                     f"tutorials/{path}/main.py", LEARNS, (), 150, images)
        )  # fmt: skip
    made.append(
        External("yunjey/language_model", suite, "yunjey/pytorch-tutorial",
                 "tutorials/02-intermediate/language_model/main.py", LEARNS, (), 150,
                 feed={"data/train.txt": "lines:2000"})
    )  # fmt: skip
    morvan = ("301_regression", "302_classification", "306_optimizer", "401_CNN", "403_RNN_regressor",
              "404_autoencoder", "406_GAN", "406_conditional_GAN", "503_dropout")  # fmt: skip
    made += [
        External(f"morvan/{name}", suite, "MorvanZhou/PyTorch-Tutorial", f"tutorial-contents/{name}.py", LEARNS,
                 (), 400, images)
        for name in morvan
    ]  # fmt: skip
    zero = ("05_linear_regression", "07_diabets_logistic", "09_2_softmax_mnist", "10_1_cnn_mnist",
            "11_1_toy_inception_mnist", "12_4_hello_rnn_emb", "13_2_rnn_classification")  # fmt: skip
    made += [
        External(f"zero-to-all/{name}", suite, "hunkim/PyTorchZeroToAll", f"{name}.py", LEARNS, (), 200, images)
        for name in zero
    ]
    johnson = ("two_layer_net_optim", "two_layer_net_module", "dynamic_net")
    made += [
        External(f"jcjohnson/{name}", suite, "jcjohnson/pytorch-examples", f"nn/{name}.py", LEARNS, (), 500)
        for name in johnson
    ]
    return made


def _language() -> list[External]:
    suite = "healthy, supervised"
    nlp = {
        "NNLM": "1-1.NNLM/NNLM.py",
        "Word2Vec": "1-2.Word2Vec/Word2Vec-Skipgram(Softmax).py",
        "TextCNN": "2-1.TextCNN/TextCNN.py",
        "TextRNN": "3-1.TextRNN/TextRNN.py",
        "TextLSTM": "3-2.TextLSTM/TextLSTM.py",
        "Bi-LSTM": "3-3.Bi-LSTM/Bi-LSTM.py",
        "Seq2Seq": "4-1.Seq2Seq/Seq2Seq.py",
        "Seq2Seq-attention": "4-2.Seq2Seq(Attention)/Seq2Seq(Attention).py",
        "Bi-LSTM-attention": "4-3.Bi-LSTM(Attention)/Bi-LSTM(Attention).py",
        "Transformer": "5-1.Transformer/Transformer.py",
        "BERT": "5-2.BERT/BERT.py",
    }
    made = [
        External(f"nlp-tutorial/{name}", suite, "graykode/nlp-tutorial", path, LEARNS, (),
                 20 if name in ("Transformer", "BERT") else 300)
        for name, path in nlp.items()
    ]  # fmt: skip
    names = ("--max-steps", "200", "-n", "0", "--n-layer", "2", "--n-embd", "32", "--n-embd2", "32")
    made += [
        External(f"makemore/{kind}", suite, "karpathy/makemore", "makemore.py", LEARNS, (*names, "--type", kind), 200)
        for kind in ("transformer", "mlp", "rnn", "gru", "bow")
    ]
    gpt = ("--dataset=text", "--device=cpu", "--compile=False", "--eval_iters=1", "--eval_interval=1000",
           "--block_size=32", "--batch_size=8", "--n_layer=4", "--n_head=4", "--n_embd=64", "--dropout=0.0",
           "--gradient_accumulation_steps=1", "--learning_rate=1e-3", "--warmup_iters=20", "--log_interval=50",
           "--max_iters=200")  # fmt: skip
    tokens = {
        "data/text/train.bin": "numbers:300000",
        "data/text/val.bin": "numbers:9000",
        "data/text/meta.pkl": "vocabulary:128",
    }
    made += [
        External("nanoGPT/train", suite, "karpathy/nanoGPT", "train.py", LEARNS, gpt, 150, feed=tokens),
        External("minGPT/adder", suite, "karpathy/minGPT", "projects/adder/adder.py", LEARNS,
                 ("--trainer.num_workers=0", "--trainer.batch_size=32", "--trainer.max_iters=200"), 200, folders=("",)),
        External("minGPT/chargpt", suite, "karpathy/minGPT", "projects/chargpt/chargpt.py", LEARNS,
                 ("--trainer.num_workers=0", "--trainer.batch_size=8", "--model.model_type=gpt-nano",
                  "--data.block_size=32", "--trainer.max_iters=200"), 200, folders=("",),
                 feed={"input.txt": "text:100000"}),
        External("ng-video-lecture/bigram", suite, "karpathy/ng-video-lecture", "bigram.py", LEARNS, (), 400),
    ]  # fmt: skip
    return made


def _generative() -> list[External]:
    suite = "healthy, generative"
    names = ("gan", "cgan", "acgan", "aae", "lsgan", "wgan", "wgan_gp", "dcgan", "infogan", "softmax_gan", "bgan",
             "dragan", "relativistic_gan", "sgan")  # fmt: skip
    made = [
        External(f"PyTorch-GAN/{name}", suite, "eriklindernoren/PyTorch-GAN", f"implementations/{name}/{name}.py",
                 LEARNS, ("--n_epochs", "10", "--sample_interval", "100000", "--batch_size", "32"), 120, ("images",))
        for name in names
    ]  # fmt: skip
    made.append(
        External("tiny-diffusion/ddpm", suite, "tanelp/tiny-diffusion", "ddpm.py", LEARNS,
                 ("--dataset", "moons", "--num_epochs", "3", "--hidden_layers", "2"), 300)
    )  # fmt: skip
    return made


PROGRAMS = _all()
